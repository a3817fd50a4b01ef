"""Fetches samples of shards at a URL by their byte ranges, many at a time, through the cache.

Invariant: each sample is compared with its checksum, whether it comes from the cache or from the
server. An error of a request belongs to whoever reads the sample, and goes through
``remote.download``, which tries again.
"""

from __future__ import annotations

import ssl
import time
from collections import Counter
from collections.abc import Collection

from autotimm.files import answers, remote, s3, urls
from autotimm.files.answers import AnswerError
from autotimm.files.connection import NoRangesError, OtherFileError
from autotimm.files.ranges import Ranges
from autotimm.files.targets import Range
from autotimm.format.index import checksum
from autotimm.streaming.cached_shards import CachedShardFiles
from autotimm.streaming.open_shard import parts
from autotimm.streaming.partial_shards import PartialShard, PartialShards
from autotimm.streaming.sparse import Room
from autotimm.streaming.upcoming import Place

Sample = tuple[memoryview, memoryview]
"""The bytes of an image and of its record."""

_MOST_HELD = 64 << 20  # bytes that were asked for and not read yet
_MOST_JOINED = 1 << 20  # bytes of one request for several samples
_GAP = 2048  # bytes of headers and padding between neighbours in a tar
_BUSY = (429, 503)  # statuses of a server that has too much to do


class DamagedError(OSError):
    """The bytes of a sample are not those of the index."""


class Fetcher:
    """Fetches samples; of one process.

    Args:
        files: the shards.
        most: requests at a time.

    Attributes:
        shards: that are open.
        again: samples whose request failed before they were waited for, to be asked for again.
        no_ranges: why ranges cannot be had of the server, once that is known.
    """

    def __init__(self, files: CachedShardFiles, most: int) -> None:
        self._files, self._stall = files, files.cache.retry.stall
        self._most, self._ranges = most, Ranges(most, self._stall)
        self.shards, self._room = PartialShards(files), Room(files.cache)
        self._asked: dict[Place, Range] = {}  # on their way
        self._places: dict[Range, list[Place]] = {}
        self._came: dict[Place, Sample | Exception] = {}
        self._answered = False  # by a range
        self._held = 0  # bytes in asked and came
        self._signatures = s3.Signatures(self._stall)
        self._hold_until = 0.0  # when a server may be asked again, which has asked to wait
        self._held_by: Exception | None = None
        self.again: list[Place] = []
        self.no_ranges: NoRangesError | None = None

    def close(self) -> None:
        """Closes the connections."""
        self._ranges.close()

    @property
    def may_ask(self) -> bool:
        """Whether a further request can be sent now: one alone until it is known to get a range."""
        if time.monotonic() < self._hold_until or (not self._answered and self._asked):
            return False
        return bool(self._ranges.free) and self._held < _MOST_HELD

    def knows(self, place: Place) -> bool:
        """Whether a sample is on its way, or has come."""
        return place in self._asked or place in self._came

    def forget(self) -> None:
        """Drops what has come."""
        self._came.clear()
        self.again.clear()
        self._held = sum(one.end - one.start for one in self._places)

    def cached(self, place: Place) -> Sample | None:
        """A sample from the cache; None if it is not there, or damaged."""
        opened = self.shards.opened(place[0])
        row = opened.rows[place[1]].item()
        if not opened.file.may_hold(row[0]):
            return None
        begin, end = opened.span(place[1])
        return parts(row, opened.file.read(begin, end), begin)

    def cached_record(self, place: Place) -> memoryview | None:
        """A record from the cache; None if it is not there, or damaged."""
        opened = self.shards.opened(place[0])
        _, _, at, length, *_, text_sum = opened.rows[place[1]].item()
        text = opened.file.read(at, at + length)
        return text if checksum(text) == text_sum else None

    def ask(self, place: Place, wanted: Collection[Place] = (), first: bool = False) -> None:
        """Asks for a sample unless it is known or cached, and for its neighbours.

        Args:
            place: of the sample.
            wanted: what will be asked for soon; neighbours in the tar are, by the same request.
            first: ask before all others, even if it seems to be in the cache.
        """
        shard, index = place
        opened = self.shards.opened(shard)
        if self.knows(place) or (not first and opened.may_hold(index)):
            return
        low = high = index
        begin, end = opened.span(index)
        while self._joins(opened, (shard, high + 1), wanted, begin, end):
            high, end = high + 1, opened.span(high + 1)[1]
        while self._joins(opened, (shard, low - 1), wanted, begin, end):
            low, begin = low - 1, opened.span(low - 1)[0]
        one = Range(self._url(opened), begin, end, self._files.size(shard))
        try:
            self._ranges.ask(one, first)  # before it is noted, because it may raise an error
        except KeyboardInterrupt:  # it may have been about to send another one
            self._drop_requests()
            raise
        self._places[one] = [(shard, i) for i in range(low, high + 1)]
        self._asked |= dict.fromkeys(self._places[one], one)
        self._held += end - begin

    def _joins(
        self, opened: PartialShard, place: Place, wanted: Collection[Place], begin: int, end: int
    ) -> bool:
        """Whether a neighbour is fetched by the same request, so far from ``begin`` to ``end``."""
        if place not in wanted or self.knows(place) or opened.may_hold(place[1]):
            return False
        first, last = opened.span(place[1])
        near = 0 <= first - end <= _GAP or 0 <= begin - last <= _GAP
        return near and max(last, end) - min(first, begin) <= _MOST_JOINED

    def fetched(self, place: Place) -> Sample | None:
        """Waits for a sample, and asks for it as often as necessary.

        Returns:
            None if its bytes differ from the index, also when they come anew.

        Raises:
            NoRangesError: the server sends whole files alone.
            InputError: it cannot be downloaded.
        """
        outcomes = [self._outcome(place)]
        if not isinstance(outcomes[0], Exception):
            return outcomes[0]
        url, tries = self.shards.opened(place[0]).url, Counter[type]()

        def attempt() -> Sample | NoRangesError | None:
            outcome = outcomes.pop() if outcomes else self._outcome(place)
            tries[type(outcome)] += 1
            if not isinstance(outcome, Exception) or isinstance(outcome, NoRangesError):
                return outcome
            if isinstance(outcome, DamagedError | OtherFileError) or _status(outcome) == 416:
                self._files.check_not_rewritten()
            if tries[DamagedError] == 2:
                return None
            if tries[type(outcome)] == 1 and self._signatures.renewed_after(url, outcome):
                return attempt()
            raise outcome

        with self._files.named(place[0]):
            found = remote.download(url, attempt, self._files.cache.retry)
        if isinstance(found, NoRangesError):
            raise found
        return found

    def _url(self, opened: PartialShard) -> str:
        """Where a shard is to be asked for: an S3 URL is signed."""
        is_s3 = urls.kind(opened.url) == "s3"
        return self._signatures.url_of(opened.url) if is_s3 else opened.url

    def _outcome(self, place: Place) -> Sample | Exception:
        """One try to get a sample: waits for it if it is on its way, or asks for it."""
        if not self.knows(place):
            if time.monotonic() < self._hold_until and self._held_by is not None:
                return self._held_by
            try:
                self.ask(place, first=True)
            except Exception as error:  # of s3fs and botocore, which sign the URL
                return answers.of_store(error)
        patience = max(0.01, min(1.0, self._stall / 4))
        while place in self._asked:
            self.receive(patience, place)
        outcome = self._came.pop(place)
        if not isinstance(outcome, Exception):
            self._held -= len(outcome[0]) + len(outcome[1])
        return outcome

    def receive(self, seconds: float, awaited: Place | None = None) -> None:
        """Takes what has come; waits up to so many seconds for something."""
        try:
            for one, outcome in self._ranges.wait(seconds):
                places = self._places.pop(one, [])
                self._held -= one.end - one.start if places else 0
                for place in places:
                    del self._asked[place]
                if isinstance(outcome, Exception):
                    self._note(outcome, one, places, awaited)
                else:
                    self._take(places, one, outcome)
        except BaseException:  # an interrupt, or a full disk: nobody may wait for what is lost here
            self._drop_requests()
            raise

    def _drop_requests(self) -> None:
        self._ranges.close()
        self._ranges = Ranges(self._most, self._stall)
        self._asked.clear()
        self._places.clear()
        came = [one for one in self._came.values() if not isinstance(one, Exception)]
        self._held = sum(len(image) + len(text) for image, text in came)

    def _note(
        self, error: Exception, one: Range, places: list[Place], awaited: Place | None
    ) -> None:
        """Keeps an error for those who read the samples, or has them asked for again."""
        url = self._files.url_of(places[0][0]) if places else ""
        if urls.kind(url) == "s3":
            error = self._of_signed(error, url, one)
        if isinstance(error, NoRangesError):
            self.no_ranges = error
        if isinstance(error, AnswerError):
            wait = error.wait or self._files.cache.retry.wait * (error.status in _BUSY)
            if wait:
                self._hold_until, self._held_by = time.monotonic() + wait, error
        for place in places:
            if place == awaited or answers.is_final(error):
                self._came[place] = error
            else:
                self.again.append(place)

    def _of_signed(self, error: Exception, url: str, one: Range) -> Exception:
        """What an error of a signed URL means."""
        refused = isinstance(error, AnswerError) and error.code not in s3.REPLACED
        if not answers.is_final(error) or not (refused or isinstance(error, ssl.SSLError)):
            return error
        if not self._answered:
            # The store's client may have other ways, such as to ask in another region or to trust
            # other certificates, and gives the reason otherwise.
            return NoRangesError(f"it refuses signed URLs: {error}")
        if not self._signatures.is_present(url, one.url):  # the machine may have slept meanwhile
            return OSError(f"its signature was too old: {error}")
        return error

    def _take(self, places: list[Place], one: Range, data: memoryview) -> None:
        """Compares the samples of a range with their checksums, and puts them into the cache."""
        if not places:  # an interrupt came before they were noted
            return
        opened, self._answered = self.shards.opened(places[0][0]), True
        for place in places:
            found = parts(opened.rows[place[1]].item(), data, one.start)
            if found is None:
                self._came[place] = DamagedError("its content is not what the index says")
                continue
            self._came[place] = found
            self._held += len(found[0]) + len(found[1])
            begin, end = opened.span(place[1])
            piece = data[begin - one.start : end - one.start]
            opened.file.write(begin, piece, self._room, self._files.kept)


def _status(error: Exception) -> int:
    return error.status if isinstance(error, AnswerError) else 0
