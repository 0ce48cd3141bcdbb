"""Any history of one URL, against a model of RFC 9111: what is served, and who is asked."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from cachefsm import Cache
from tests.support.caches import HASTY, Clock, eventually, rows
from tests.support.clients import Reply, ask
from tests.support.faults import dated, status
from tests.support.origin import Exchange, Origin, Resource, pattern

SIZE = 2000


@dataclass(frozen=True)
class Said:
    """What an origin says of caching."""

    max_age: int
    extra: str = ""

    def __str__(self) -> str:
        return f"max-age={self.max_age}{self.extra and ', '}{self.extra}"

    @property
    def may_be_stale(self) -> bool:
        return not {"no-cache", "must-revalidate", "no-store"} & set(self.extra.split(", "))

    def seconds(self, name: str) -> float | None:
        """Return the argument of a directive, None where it is absent."""
        found = [each for each in self.extra.split(", ") if each.startswith(f"{name}=")]
        return float(found[0].partition("=")[2]) if found else None


SAID = st.builds(
    Said,
    st.sampled_from([0, 10, 30]),
    st.sampled_from(
        ["", "", "no-cache", "must-revalidate", "no-store", "private", "stale-if-error=15",
         "stale-while-revalidate=15"]
    ),
)  # fmt: skip
ASKED = st.sampled_from(
    ["", "", "", "no-cache", "max-age=5", "min-fresh=15", "max-stale", "max-stale=10",
     "only-if-cached", "no-store"]
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What the model has stored."""

    version: int
    said: Said
    since: float

    def late_by(self, now: float) -> float:
        """Return for how long it has been stale; negative while it is fresh."""
        return now - self.since - self.said.max_age


class OneUrl(RuleBasedStateMachine):
    """Clients ask, time passes, the origin changes what it has and what it says."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._origin = self._stack.enter_context(Origin())
        self._clock = Clock()
        self._origin.script(dated(self._clock), times=None)
        self._origin.script(self._fail, times=None)
        directory = self._stack.enter_context(TemporaryDirectory())
        cache = Cache(directory, clock=self._clock, retries=HASTY, fill="requested")
        self._cache = self._stack.enter_context(cache)
        server = cache.serve(mounts=[f"/m={self._origin.url()}"])
        self._url = f"{self._stack.enter_context(server).url}m/film"
        self._kept: Kept | None = None
        self._passes = False  # the last answer could not be stored
        self._trouble = ""

    def teardown(self) -> None:
        self._stack.close()

    @initialize(
        said=SAID,
        etag=st.sampled_from(['"v{version}"', 'W/"v{version}"', None]),
        dated=st.booleans(),
    )
    def begin(self, said: Said, etag: str | None, dated: bool) -> None:
        self._version, self._said = 0, said
        self._etag, self._dated = etag, dated
        self._put()

    @rule(seconds=st.sampled_from([1, 5, 10, 20, 60]), asked=ASKED)
    def wait(self, seconds: int, asked: str) -> None:
        self._clock.now_s += seconds
        self.ask(asked)

    @rule(said=SAID | st.none())
    def change(self, said: Said | None) -> None:
        self._version += said is None
        self._said = said or self._said
        self._put()

    @rule(trouble=st.sampled_from(["", "", "503", "reset"]))
    def have_trouble(self, trouble: str) -> None:
        self._trouble = trouble

    @rule(asked=ASKED)
    def ask(self, asked: str) -> None:
        kept = self._kept
        late = kept.late_by(self._clock()) if kept else 0
        how = self._how(kept, asked)
        if how == "meanwhile" and (self._trouble or not late):
            return  # nothing tells when that is over
        if kept is None and self._trouble == "reset":
            return  # that is tried again
        before = len(self._origin.requests)
        reply = ask(self._url, {"Cache-Control": asked} if asked else {})
        if how == "now":
            assert kept is not None
            self._is(reply, kept.version, asked=before)
            told = "cachefsm; hit" + (f"; ttl={-int(late)}" if late > 0 else "")
            assert reply["Cache-Status"] == told
            assert reply["Age"] == str(int(self._clock() - kept.since))
        elif how == "never":
            assert (reply.status, len(self._origin.requests)) == (504, before)
        elif how == "meanwhile":
            assert kept is not None
            self._origin.wait_for_requests(before + 1)
            self._is(reply, kept.version, asked=before + 1)
            eventually(lambda: self._validated_at() != kept.since)
            self._answered("")
        elif self._trouble:
            self._in_trouble(reply, kept, asked)
            assert len(self._origin.requests) == before + 1
        else:
            self._is(reply, self._version, asked=before + 1)
            self._answered(asked)
        eventually(self._is_quiet)

    def _how(self, kept: Kept | None, asked: str) -> str:
        """Return how a request is to be answered: now, meanwhile, after asking, or never."""
        otherwise = "never" if asked == "only-if-cached" else "after asking"
        if kept is None:
            return otherwise
        age, late = self._clock() - kept.since, kept.late_by(self._clock())
        if asked == "no-cache" or not {"no-cache", "no-store"}.isdisjoint(
            kept.said.extra.split(", ")
        ):
            return otherwise
        if asked == "max-age=5" and age > 5:
            return otherwise
        allowed = {"max-stale": float("inf"), "max-stale=10": 10.0}.get(asked, -0.5)
        if not kept.said.may_be_stale:
            allowed = -0.5
        if late + (15 if asked == "min-fresh=15" else 0) <= allowed:
            return "now"
        meanwhile = kept.said.seconds("stale-while-revalidate")
        if otherwise == "never" or asked == "min-fresh=15" or meanwhile is None:
            return otherwise
        return "meanwhile" if late <= meanwhile else otherwise

    def _is(self, reply: Reply, version: int, *, asked: int) -> None:
        assert (reply.status, reply.body) == (200, pattern(version)(0, SIZE))
        assert len(self._origin.requests) == asked

    def _answered(self, asked: str) -> None:
        """Take note of what the origin's answer does to what is stored."""
        kept, now = self._kept, self._clock()
        validated = self._etag is not None or self._dated
        if kept is not None and kept.version == self._version and validated:
            self._kept = replace(kept, said=self._said, since=now)
        elif self._said.extra == "no-store" or asked == "no-store" or self._passes:
            self._kept, self._passes = None, self._passes or asked != "no-store"
        else:
            self._kept = Kept(self._version, self._said, now)

    def _in_trouble(self, reply: Reply, kept: Kept | None, asked: str) -> None:
        """Check what is served while the origin cannot answer."""
        may = kept is not None and kept.said.may_be_stale
        if kept is not None and may:
            limit = kept.said.seconds("stale-if-error")
            may = limit is None or kept.late_by(self._clock()) <= limit
        if kept is not None and may:
            assert (reply.status, reply.body) == (200, pattern(kept.version)(0, SIZE))
            assert "detail=stale" in str(reply["Cache-Status"])
        else:
            assert reply.status == (503 if self._trouble == "503" else 504)

    def _is_quiet(self) -> bool:
        return not any(entry["streams"] or entry["readers"] for entry in self._cache.describe_all())

    def _validated_at(self) -> float | None:
        query = "SELECT validated_at FROM cache_entries"
        ((found,),) = rows(self._cache.directory, query)
        return found

    def _put(self) -> None:
        modified = f"Wed, 01 Jan 2020 00:{self._version // 60:02}:{self._version % 60:02} GMT"
        self._origin.put(
            "/film",
            Resource(
                SIZE,
                etag=self._etag,
                last_modified=modified if self._dated else None,
                headers=(("Cache-Control", str(self._said)),),
                version=self._version,
            ),
        )

    def _fail(self, exchange: Exchange) -> None:
        if self._trouble == "503":
            status(503)(exchange)
        elif self._trouble == "reset":
            exchange.reset()


test_any_history_is_served_as_the_model_says = OneUrl.TestCase
test_any_history_is_served_as_the_model_says.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)
