#!/usr/bin/env python3
"""Tests that the limiter is there and limits: the first tier of --keys alone, at the health that it finds.

Needs no admin token and changes nothing. Takes 2 to 15 seconds on the demo.
"""

import sys
import time

import limiter_check as check


def test(api, show):
    state = api.health()["health"]
    caller = api.chosen.keys[0]
    limit = api.chosen.tiers[caller.tier][state]
    show.line(f"{api.chosen.url}: health is {state}, so {caller.tier} may send {limit.capacity} at once")

    check.wait_for_full_buckets(api, [caller], show)
    burst = check.empty_bucket(api, caller, limit, show)
    show.check("as many as the bucket holds", check.check_full_bucket(show, burst, limit))
    if burst.first_rejected is None:
        return
    show.check("says when to come back", retry_after_is_missing(burst.first_rejected))
    show.check("admitted when it comes back", still_rejected(api, caller, show))


def retry_after_is_missing(reply):
    found = reply.number("Retry-After")
    return None if found else f"found Retry-After {reply.all('Retry-After')}, wanted whole seconds, at least 1"


def still_rejected(api, caller, show):
    reply = api.take(caller)
    if reply.status == 429:
        show.wait_until(time.monotonic() + (reply.number("Retry-After") or 1), "waiting as Retry-After says")
        reply = api.take(caller)
    return None if reply.status == 200 else f"found {reply.status}, wanted 200"


if __name__ == "__main__":
    sys.exit(check.run(test, __doc__, needs_token=False))
