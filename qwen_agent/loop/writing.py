"""The model's part of a step: one generation, watched, weighed and parsed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime, text_of
from qwen_agent.loop.run import Run
from qwen_agent.parser import Parsed, Part, StepParser
from qwen_agent.types import Confidence, Event, ModelWrote, Prompt, Reading, Text, Usage, Weighed

# Written by the tools alone. Also with the full-width colon of Chinese and Japanese text.
OBSERVATION = ("Observation:", "Observation\uff1a")


@dataclass(frozen=True, slots=True)
class Output:
    """One generation, and what the parser made of it."""

    wrote: ModelWrote
    parsed: Parsed

    @property
    def believed(self) -> Prompt:
        """What was written, as tokens; if some of it was discarded, the rest as text."""
        return (Text(self.parsed.kept),) if self.parsed.discarded else self.wrote.output

    @property
    def cut_off(self) -> bool:
        """True if it ended at a token limit, so that its end may be missing."""
        return self.wrote.finish == "length"

    @property
    def call_cut_off(self) -> bool:
        """True if the end of a call may be missing: also where "Observation:" came in the middle of a line."""
        text = text_of(self.believed)
        stopped = self.wrote.stop in OBSERVATION or self.parsed.invented > 0
        return self.cut_off or (stopped and bool(text) and not text.endswith("\n"))


@dataclass(frozen=True, slots=True)
class Writer:
    """Has a runtime write. ``tools`` are the names that `GenerationConfig.choices` are about, after answering."""

    runtime: Runtime
    tools: Iterable[str]
    call_threshold: float | None

    def write(
        self, run: Run, config: GenerationConfig, first: Part, *, to_the_end: bool = False
    ) -> Generator[Event, None, Output | None]:
        """Generate and parse one output, or take it from the log.

        None if it was broken off: the run was cancelled or (unless ``to_the_end``) out of time, or the threshold
        settled what this step will be, which is then `Run.decided`.
        """
        digest = run.digest
        if config.choices and (weighed := run.past.take(Weighed, digest)):
            yield weighed
            run.usage += weighed.usage
            if self._decide(run, weighed.confidence):
                return None
            config = replace(config, choices=())
        parser = StepParser(first)
        wrote = run.past.take(ModelWrote, digest)
        if wrote is not None:
            yield from parser.feed(text_of(wrote.output))
            run.was_at(wrote.elapsed)
        else:
            run.past.must_have_ended(digest)
            chunk = yield from self._generate(run, config, parser, to_the_end)
            if chunk is None:
                return None
            finish, elapsed = chunk.finish or "stop", round(run.elapsed, 6)
            wrote = ModelWrote(chunk.output, finish, chunk.stop, -1, chunk.usage, elapsed, digest)
        held, parsed = parser.finish()
        yield from held
        output = Output(wrote, parsed)
        if wrote.tokens < 0:
            output = replace(output, wrote=replace(wrote, tokens=self.runtime.count_tokens(output.believed)))
        run.usage += wrote.usage
        run.decided = None
        yield output.wrote
        return output

    def _generate(
        self, run: Run, config: GenerationConfig, parser: StepParser, to_the_end: bool
    ) -> Generator[Event, None, Chunk | None]:
        chunks = self.runtime.stream(run.prompt, config)
        last = Chunk()
        try:
            for last in chunks:
                if last.read is not None:
                    yield Reading(*last.read)
                if last.weights:
                    answer, *calls = last.weights
                    confidence = Confidence(answer, dict(zip(self.tools, calls, strict=True)))
                    settled = self._decide(run, confidence)
                    weighed = Weighed(confidence, run.digest, last.usage if settled else Usage())
                    run.usage += weighed.usage
                    yield weighed
                    if settled:
                        return None
                if last.text:
                    yield from parser.feed(last.text)
                if run.cancelled or (run.expired and not to_the_end):
                    return None
        finally:
            _close(chunks)
        return last

    def _decide(self, run: Run, confidence: Confidence | None) -> bool:
        """Note how sure the model is. With a threshold, settle what this step will be; True if that is now settled."""
        run.confidence = confidence
        if self.call_threshold is None or confidence is None:
            return False
        run.decided = "required" if confidence.call >= self.call_threshold else "none"
        return True


def _close(chunks: Iterator[Chunk]) -> None:
    """Stop a generation that is not wanted any more (a plain iterator has nothing to stop)."""
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
