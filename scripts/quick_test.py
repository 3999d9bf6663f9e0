#!/usr/bin/env python3
"""Tests every tier in both states of health: as many requests as its bucket holds pass, and not one more.

Health is changed while it runs, and put back at the end and on Ctrl-C. Takes 10 to 30 seconds on the demo.
"""

import sys

import limiter_check as check


def test(api, show):
    show.title("QUICK RATE LIMITER TEST")
    for state, mode in zip(check.STATES, ("burst", "load shedding")):
        show.section(f"{state} ({mode})")
        api.set_health(state)
        check.wait_for_full_buckets(api, api.chosen.keys, show)
        for caller in api.chosen.keys:
            limit = api.chosen.tiers[caller.tier][state]
            show.box(f"{caller.tier.upper():<10} in {state} (expect: {limit.capacity})")
            burst = check.empty_bucket(api, caller, limit, show)
            show.check(f"{caller.tier} in {state}", check.check_full_bucket(show, burst, limit))


if __name__ == "__main__":
    sys.exit(check.run(test, __doc__, needs_token=True))
