#!/usr/bin/env python3
"""Tests every tier in both states of health, shows the headers of the answers and checks each, and how buckets refill.

Also: the endpoints, a wrong admin token, and that made-up keys buy nothing. Health is changed while it runs, and put
back at the end and on Ctrl-C. Takes 30 to 50 seconds on the demo.
"""

import json
import math
import re
import sys
import time

import limiter_check as check

LIMITER_HEADERS = re.compile(r"x-ratelimit-|x-system-health|x-processing-time|retry-after|ratelimit", re.IGNORECASE)

# Tokens that a bucket should have gained before the refill is measured.
REFILLED_TOKENS = 2


def test(api, show):
    show.title("COMPREHENSIVE RATE LIMITER TEST")
    show.section("Endpoints")
    test_endpoints(api, show)
    for state in check.STATES:
        show.section(f"{state} state")
        api.set_health(state)
        show.check(f"GET /system/health tells {state}", unless(api.health()["health"], state))
        test_state(api, show, state)
    show.section("Made-up keys")
    test_made_up_keys(api, show)


def test_endpoints(api, show):
    reply = api.send("GET", "/health")
    show_reply(show, "GET /health", reply)
    show.line(reply.body.strip())
    show.check("GET /health is 200 and tells a status", problem_of_health(reply))

    reply = api.send("POST", "/system/health", {"X-Admin-Token": "surely-wrong"}, '{"status":"NORMAL"}')
    show.line(f"\nPOST /system/health with a wrong token: {reply.status} {reply.body.strip()}")
    wanted = (403, '{"detail":"Invalid admin token"}')
    show.check("a wrong admin token is rejected", unless((reply.status, reply.body.strip()), wanted))


def problem_of_health(reply):
    try:
        shown = json.loads(reply.body)
        well_formed = shown["status"] in ("healthy", "degraded") and shown["health"] in check.STATES and "redis" in shown
    except (ValueError, KeyError, TypeError):
        well_formed = False
    return None if reply.status == 200 and well_formed else f"found {reply.status} {reply.body.strip()[:80]!r}"


def test_state(api, show, state):
    check.wait_for_full_buckets(api, api.chosen.keys, show)
    bursts = {}
    for caller in api.chosen.keys:
        limit = api.chosen.tiers[caller.tier][state]
        show.box(f"{caller.tier.upper():<10} in {state} (expect: {limit.capacity})")
        bursts[caller] = burst = check.empty_bucket(api, caller, limit, show)
        show.check("as many as the bucket holds", check.check_full_bucket(show, burst, limit))
        kinds = (("first", burst.replies[0]), ("last admitted", burst.last_admitted), ("rejected", burst.first_rejected))
        for what, reply in kinds:
            if reply is not None:
                show_reply(show, f"{caller.tier}, {what}", reply)
                show.check("its headers", problem_of_headers(reply, caller.tier, limit, state))
    test_refill(api, show, state, bursts)


def test_refill(api, show, state, bursts):
    """After a while, what a bucket has gained is what its rate says: at least since its last rejection, at most in all."""
    limits = {caller: api.chosen.tiers[caller.tier][state] for caller in bursts}
    slowest = min((limit.rate for limit in limits.values() if limit.rate), default=1)
    show.line()
    show.wait_until(time.monotonic() + REFILLED_TOKENS / slowest, f"waiting for {REFILLED_TOKENS} tokens or more each")
    for caller, before in bursts.items():
        limit = limits[caller]
        if before.first_rejected is None:
            show.check(f"{caller.tier} refills", "it was never rejected")
            continue
        show.line(f"\n{caller.tier}, {limit.rate:g} tokens a second:")
        after = check.empty_bucket(api, caller, limit, show)
        gained = min(limit.capacity, limit.rate * (after.began - before.rejection_received_at))
        least = math.floor(gained - before.admitted_after_rejection)
        most = math.floor(limit.capacity + limit.rate * (after.ended - before.began))
        total = before.admitted + after.admitted
        show.line(f"Result: {after.in_a_row} in a row, {total} since the bucket was full | Expected: {least} or more, {most} or fewer")
        problem = None
        if after.in_a_row < least:
            problem = f"{after.in_a_row} were admitted, wanted at least {least}"
        elif total > most:
            problem = f"{total} were admitted since the bucket was full, wanted at most {most}"
        show.check(f"{caller.tier} refills at {limit.rate:g} a second in {state}", problem)


def test_made_up_keys(api, show):
    """Whatever the key, a caller without a known one has its address' bucket."""
    address = next((caller for caller in api.chosen.keys if not caller.key), None)
    if address is None:
        show.line("--keys has no tier without a key, so there is no address to compare with.")
        return
    limit = api.chosen.tiers[address.tier][api.health()["health"]]
    burst = check.empty_bucket(api, address, limit, show)
    if burst.first_rejected is None:
        show.check("made-up keys buy nothing", "the address itself was never rejected")
        return
    tries = 2 * limit.capacity + 3
    replies = [api.take(check.Caller(address.tier, f"made-up-{n}")) for n in range(tries)]
    # At the rejection there was less than a token.
    most = math.floor(1 + limit.rate * (time.monotonic() - burst.rejection_sent_at))
    admitted = burst.admitted_after_rejection + sum(reply.status == 200 for reply in replies)
    problem = None if admitted <= most else f"{admitted} were admitted, wanted at most {most}"
    show.check(f"{tries} made-up keys buy nothing once the address' bucket is empty", problem)


def show_reply(show, what, reply):
    show.line(f"\n{what}: {reply.status} {reply.reason}")
    for name, value in reply.headers:
        if LIMITER_HEADERS.match(name):
            show.line(f"    {name}: {value}")


def problem_of_headers(reply, tier, limit, state):
    """The first header that is not there once with the value it should have."""
    remaining, reset = reply.number("X-RateLimit-Remaining"), reply.number("X-RateLimit-Reset")
    wanted = [
        ("X-RateLimit-Limit", reply.number("X-RateLimit-Limit") == limit.capacity, str(limit.capacity)),
        ("X-RateLimit-Remaining", remaining is not None and remaining < max(1, limit.capacity), f"0 to {limit.capacity - 1}"),
        ("X-RateLimit-Tier", reply.one("X-RateLimit-Tier") == tier, tier),
        ("X-System-Health", reply.one("X-System-Health") == state, state),
        ("X-Processing-Time", re.fullmatch(r"\d+\.\d{4}s", reply.one("X-Processing-Time") or ""), "the shape of 0.0234s"),
    ]
    if reply.status == 429:
        wanted += [
            ("X-RateLimit-Remaining", remaining == 0, "0"),
            ("Retry-After", (reply.number("Retry-After") or 0) >= 1, "whole seconds, at least 1"),
            ("Content-Type", (reply.one("Content-Type") or "").startswith("text/plain"), "text/plain"),
        ]
    elif limit.rate and remaining is not None:
        due = (limit.capacity - remaining) / limit.rate
        # Whole seconds up, a token that was on its way, and a Date that may be half a second old.
        ahead = check.seconds_until(reset, reply)
        wanted += [
            ("X-RateLimit-Reset", reset and due - 1 / limit.rate - 1 <= ahead <= due + 3, f"in about {due:.0f} s"),
            ("Retry-After", not reply.all("Retry-After"), "none on an admitted request"),
        ]
    for name, holds, what in wanted:
        if not holds:
            return f"{name}: found {reply.all(name)}, wanted {what}"
    if reply.status == 429 and reply.body.strip() != "Too Many Requests":
        return f"the body: found {reply.body.strip()[:80]!r}, wanted 'Too Many Requests'"
    return None


def unless(found, wanted):
    return None if found == wanted else f"found {found}, wanted {wanted}"


if __name__ == "__main__":
    sys.exit(check.run(test, __doc__, needs_token=True))
