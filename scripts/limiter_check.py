"""What the three tests share: options, HTTP, the limits to expect, bursts of requests, and health put back at the end.

Only Python's standard library. Not a program by itself: see quick_test.py, comprehensive_test.py and simple_test.py.
"""

import argparse
import email.utils
import http.client
import json
import math
import os
import signal
import sys
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

SHIPPED_TIERS = Path(__file__).resolve().parent.parent / "config" / "tiers.json"
DEMO_KEYS = "free=,pro=pro,enterprise=enterprise"
DEMO_TOKEN = "admin_secret_token_change_in_production"

STATES = ("NORMAL", "DEGRADED")

# How long one answer may take.
ANSWER_LIMIT_SECONDS = 10

# How many requests are sent after the first rejection, to see that the bucket stays empty.
EXTRA_REQUESTS = 3


class CannotTest(Exception):
    """The test cannot go on, and so it has failed."""


# What the user chose.


def options(description, needs_token):
    """Reads the command line and the environment."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 when all passed, 1 when something failed, 2 for wrong options, 130 after Ctrl-C.\n"
        "No colours where the output is no terminal or NO_COLOR is set.\n"
        "While it runs, no other client may send requests with the same keys or from the same address.",
    )
    parser.add_argument("--url", default="http://localhost:8000", help="where the limiter is (default: %(default)s)")
    parser.add_argument("--path", default="/test", help="a limited path that is answered with 200 (default: %(default)s)")
    parser.add_argument(
        "--keys",
        default=os.environ.get("API_KEYS", DEMO_KEYS),
        type=parse_keys,
        metavar="TIER=KEY,...",
        help="a key for each tier to test; none after the `=` means a request without a key "
        f"(default: API_KEYS, else the demo's: {DEMO_KEYS})",
    )
    parser.add_argument(
        "--tiers",
        default=str(SHIPPED_TIERS),
        type=parse_tiers,
        metavar="FILE",
        help="the tiers that the limiter is configured with, from which the expected limits are taken "
        "(default: config/tiers.json)",
    )
    parser.add_argument(
        "--max-wait",
        default=120.0,
        type=float,
        metavar="SECONDS",
        help="how long to wait at most for a used bucket to fill (default: %(default)g)",
    )
    if needs_token:
        parser.add_argument(
            "--admin-token",
            default=os.environ.get("ADMIN_TOKEN", DEMO_TOKEN),
            help="the token that may change health (default: ADMIN_TOKEN, else the demo's)",
        )
    chosen = parser.parse_args()
    if urllib.parse.urlsplit(chosen.url).scheme not in ("http", "https"):
        parser.error(f"--url: found {chosen.url!r}, wanted http://... or https://...")
    for caller in chosen.keys:
        if caller.tier not in chosen.tiers:
            limited = ", ".join(chosen.tiers)
            parser.error(f"--keys: found the tier {caller.tier!r}, wanted a limited one of --tiers: {limited}")
    return chosen


def parse_keys(text):
    callers = []
    for pair in text.split(","):
        tier, separator, key = pair.strip().partition("=")
        if not tier or not separator:
            raise argparse.ArgumentTypeError(f"found {pair!r}, wanted TIER=KEY")
        callers.append(Caller(tier, key))
    return callers


def parse_tiers(path):
    try:
        tiers = json.loads(Path(path).read_text(encoding="utf-8"))
        limited = {name: tier for name, tier in tiers.items() if not tier.get("unlimited")}
        return {name: {state: limit_of(tier, state) for state in STATES} for name, tier in limited.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{path} is no file of tiers: {error!r}") from error


# What to expect.


@dataclass(frozen=True)
class Limit:
    capacity: int
    rate: float  # tokens per second


@dataclass(frozen=True)
class Caller:
    tier: str
    key: str  # empty: identified by address


def limit_of(tier, state):
    """The limit that holds for a tier in a state of health, as the table in docs/limits.md has it."""
    base = tier["base"]
    if state == "NORMAL":
        return Limit(tier.get("burst", base)["capacity"], base["refill_rate"])
    degraded = {**base, **tier.get("degraded", {})}
    return Limit(degraded["capacity"], degraded["refill_rate"])


# Requests.


@dataclass
class Reply:
    status: int
    reason: str
    headers: list
    body: str

    def all(self, name):
        return [value for header, value in self.headers if header.lower() == name.lower()]

    def one(self, name):
        """The header's value; None unless it is there exactly once."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    def number(self, name):
        value = self.one(name)
        return int(value) if value is not None and value.isdigit() else None


class Api:
    """The limiter, as a client sees it."""

    def __init__(self, chosen):
        self.chosen = chosen
        self.url = urllib.parse.urlsplit(chosen.url)

    def connect(self):
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        return kind(self.url.hostname, self.url.port, timeout=ANSWER_LIMIT_SECONDS)

    def send(self, method, path, headers=None, body=None, connection=None):
        own = connection or self.connect()
        try:
            own.request(method, self.url.path.rstrip("/") + path, body=body, headers=headers or {})
            answer = own.getresponse()
            text = answer.read().decode("utf-8", "replace")
            return Reply(answer.status, answer.reason, answer.getheaders(), text)
        except (OSError, http.client.HTTPException) as error:
            raise CannotTest(
                f"no answer from {self.chosen.url}{path} ({error!r}). Is it running? `cargo xtask demo` starts the demo"
            ) from error
        finally:
            if connection is None:
                own.close()

    def take(self, caller, connection=None):
        """One limited request."""
        headers = {"X-API-Key": caller.key} if caller.key else {}
        reply = self.send("GET", self.chosen.path, headers, connection=connection)
        if reply.status not in (200, 429):
            raise CannotTest(
                f"{self.chosen.path} was answered with {reply.status} {reply.reason}, wanted 200 or 429; "
                "--path names a path that is limited and answered with 200"
            )
        return reply

    def health(self):
        """What GET /system/health shows."""
        reply = self.send("GET", "/system/health")
        try:
            shown = json.loads(reply.body)
            if reply.status == 200 and shown["health"] in STATES:
                return shown
        except (ValueError, KeyError, TypeError):
            pass
        raise CannotTest(
            f"GET /system/health: found {reply.status} {reply.body.strip()[:80]!r}, wanted the limiter's health. "
            "Is the filter in this Envoy?"
        )

    def set_health(self, status):
        headers = {"X-Admin-Token": self.chosen.admin_token, "Content-Type": "application/json"}
        reply = self.send("POST", "/system/health", headers, json.dumps({"status": status}))
        if reply.status != 200:
            hint = "; --admin-token or ADMIN_TOKEN names the token" if reply.status == 403 else ""
            raise CannotTest(f"health cannot be set to {status}: {reply.status} {reply.body.strip()}{hint}")


# Bursts.


@dataclass
class Burst:
    """Requests one after the other, from the first to some after the first rejection."""

    replies: list = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    # The first rejected request: when it was sent, and when its response arrived. The limiter decided in between.
    rejection_sent_at: float = 0.0
    rejection_received_at: float = 0.0

    @property
    def admitted(self):
        return sum(reply.status == 200 for reply in self.replies)

    @property
    def in_a_row(self):
        statuses = [reply.status for reply in self.replies]
        return statuses.index(429) if 429 in statuses else len(statuses)

    @property
    def admitted_after_rejection(self):
        return self.admitted - self.in_a_row

    @property
    def first_rejected(self):
        return next((reply for reply in self.replies if reply.status == 429), None)

    @property
    def last_admitted(self):
        return next((reply for reply in reversed(self.replies) if reply.status == 200), None)


def empty_bucket(api, caller, limit, show):
    """Sends requests until one is rejected and a few more, or until there were so many that none ever will be."""
    burst = Burst(began=time.monotonic())
    most = 2 * limit.capacity + 20
    after_rejection = 0
    connection = api.connect()
    try:
        while after_rejection < EXTRA_REQUESTS and len(burst.replies) < most:
            sent_at = time.monotonic()
            reply = api.take(caller, connection)
            burst.replies.append(reply)
            if reply.status == 429 and not burst.rejection_received_at:
                burst.rejection_sent_at, burst.rejection_received_at = sent_at, time.monotonic()
            after_rejection += bool(burst.rejection_received_at)
            show.mark(reply.status == 200)
    finally:
        connection.close()
        show.end_marks()
    burst.ended = time.monotonic()
    return burst


def check_full_bucket(show, burst, limit):
    """Whether a burst at a full bucket was admitted exactly as the limit says; both bounds hold at any speed."""
    refill = limit.rate * (burst.ended - burst.began)
    most = limit.capacity + math.floor(refill)
    show.line(f"Result: {burst.in_a_row} in a row, {burst.admitted} in all | Expected: {shown_range(limit.capacity, most)}")
    first = burst.replies[0].number("X-RateLimit-Remaining")
    if burst.first_rejected is None:
        return f"none of {len(burst.replies)} requests was rejected, wanted 429 after {shown_range(limit.capacity, most)}"
    if limit.capacity and first != limit.capacity - 1:
        return (
            f"the first of a full bucket left {first} by X-RateLimit-Remaining, wanted {limit.capacity - 1}; "
            "does another client send requests as this caller?"
        )
    if burst.in_a_row < limit.capacity:
        return f"{burst.in_a_row} were admitted before the first rejection, wanted at least {limit.capacity}"
    if burst.admitted > most:
        return f"{burst.admitted} were admitted, wanted at most {most}"
    return None


def shown_range(least, most):
    return f"{least}" if least == most else f"{least} to {most}"


def wait_for_full_buckets(api, callers, show):
    """Finds out for each caller when its bucket is full, and waits until all are; those of a blocked tier never are."""
    state = api.health()["health"]
    with_buckets = [caller for caller in callers if api.chosen.tiers[caller.tier][state].capacity]
    full_at = max((full_after(api, caller, show) for caller in with_buckets), default=0.0)
    if full_at - time.monotonic() > api.chosen.max_wait:
        raise CannotTest(
            f"the buckets need {full_at - time.monotonic():.0f} s to fill, more than --max-wait {api.chosen.max_wait:g}"
        )
    show.wait_until(full_at, "waiting for the buckets to fill")


def full_after(api, caller, show):
    """The monotonic time at which the caller's bucket is full, by X-RateLimit-Reset of an admitted request."""
    give_up = time.monotonic() + api.chosen.max_wait
    while True:
        reply = api.take(caller)
        if reply.status == 200:
            return time.monotonic() + seconds_until(reply.number("X-RateLimit-Reset"), reply)
        retry = time.monotonic() + (reply.number("Retry-After") or 1)
        if retry > give_up:
            raise CannotTest(f"{caller.tier} is still rejected after {api.chosen.max_wait:g} s (--max-wait)")
        show.wait_until(retry, f"{caller.tier} is being rejected, waiting for a token")


def seconds_until(unix_seconds, reply):
    """By the server's own clock: ours may differ."""
    if unix_seconds is None:
        return 0.0
    date = reply.one("Date")
    now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
    return max(0.0, unix_seconds - now)


# Showing.


class Show:
    """Prints what happens and counts what failed."""

    WIDTH = 60

    def __init__(self):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
        self.is_terminal = sys.stdout.isatty()
        self.has_colours = self.is_terminal and not os.environ.get("NO_COLOR")
        self.passed = 0
        self.failed = 0
        self.column = 0

    def coloured(self, code, text):
        return f"\033[{code}m{text}\033[0m" if self.has_colours else text

    def green(self, text):
        return self.coloured(32, text)

    def red(self, text):
        return self.coloured(31, text)

    def line(self, text=""):
        print(text)

    def title(self, text):
        self.line(f"╔{'═' * 44}╗\n║{text:^44}║\n╚{'═' * 44}╝")

    def section(self, text):
        self.line(f"\n{'═' * 46}\n{text:^46}\n{'═' * 46}")

    def box(self, text):
        self.line(f"\n┌{'─' * 44}┐\n│ {text:<42} │\n└{'─' * 44}┘")

    def mark(self, ok):
        if self.column == self.WIDTH:
            self.end_marks()
        print(self.green("✓") if ok else self.red("✗"), end="", flush=True)
        self.column += 1

    def end_marks(self):
        if self.column:
            print()
        self.column = 0

    def check(self, what, problem):
        """Counts a check; `problem` says what was found and what was wanted, or is None."""
        if problem is None:
            self.passed += 1
            self.line(self.green(f"✓ PASS  {what}"))
        else:
            self.failed += 1
            self.line(self.red(f"✗ FAIL  {what}: {problem}"))

    def wait_until(self, end, why):
        """Waits, with a countdown where there is a terminal."""
        left = end - time.monotonic()
        if left <= 0:
            return
        if not self.is_terminal:
            self.line(f"... {why}: {math.ceil(left)} s")
        while (left := end - time.monotonic()) > 0:
            if self.is_terminal:
                print(f"\r... {why}: {math.ceil(left)} s \033[K", end="", flush=True)
            time.sleep(min(left, 0.2))
        if self.is_terminal:
            print("\r\033[K", end="", flush=True)

    def verdict(self):
        self.line()
        if self.failed or not self.passed:
            self.line(self.red(f"FAILED: {self.failed} of {self.failed + self.passed} checks"))
            return 1
        self.line(self.green(f"All {self.passed} checks passed"))
        return 0


# Running.


class HealthPutBack:
    """Sees to it that health is in the end what it was, whatever happens between."""

    def __init__(self, api, show):
        self.api, self.show = api, show

    def __enter__(self):
        shown = self.api.health()
        # If health is measured, the setting to restore is AUTO and not the state at the moment.
        self.before = "AUTO" if str(shown.get("mode")).lower() == "auto" else shown["health"]
        return self

    def __exit__(self, *_):
        # A second Ctrl-C must not keep it from being put back.
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)
        try:
            self.api.set_health(self.before)
            self.show.line(f"\nHealth is {self.before} again.")
        except CannotTest as error:
            self.show.check(f"health put back to {self.before}", str(error))


def run(test, description, needs_token):
    """Runs a test; gives its exit status."""
    chosen = options(description, needs_token)
    show = Show()
    # Health is put back at each of these signals, also if a shell in the background ignores Ctrl-C for this program.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        api = Api(chosen)
        if needs_token:
            with HealthPutBack(api, show):
                test(api, show)
        else:
            test(api, show)
    except CannotTest as error:
        show.end_marks()
        show.check("the test", str(error))
    except KeyboardInterrupt:
        show.line("\ninterrupted")
        return 130
    return show.verdict()
