"""`moejax decode --input FILE --output FILE`: many prompts from a file, resumable."""

import functools
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from moejax.cli import console, options, startup

if TYPE_CHECKING:
    from moejax.bulk.answers import Asked
    from moejax.decoding.sampling_params import SamplingParams
    from moejax.loading import Model

FAILED_LINES = 1


@dataclass(frozen=True, kw_only=True)
class BulkFlags:
    """A file of prompts, and one for what comes of them.

    Raises:
        ValueError: for one of the two alone.
    """

    input: Annotated[
        str | None,
        options.option(
            "--input",
            metavar="FILE",
            help='Prompts as JSON lines: {"prompt": ...} with sampling parameters, or OpenAI\'s batch lines.',
        ),
    ] = None
    output: Annotated[
        str | None,
        options.option(
            "--output",
            metavar="FILE",
            help="Where their answers go, a line each as they end. The same command goes on behind what is there.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if (self.input is None) != (self.output is None):
            raise ValueError("--input and --output go together: prompts from one file, answers into the other")

    @property
    def given(self) -> bool:
        """Whether prompts come from a file."""
        return self.input is not None

    def survey(self, params: "SamplingParams", prompts: options.PromptFlags, model: str, **others: bool) -> "Asked":
        """Looks through the input and what is in the output.

        model: its short name.  others: further flags that were given, by their names.

        Raises:
            ValueError: for flags that do not go with files, an input that is none, and an output that cannot be one.
            OSError: for a file that cannot be opened.
        """
        from moejax.bulk.answers import Asked, check_target
        from moejax.bulk.lines import survey
        from moejax.decoding.sampling_params import SamplingParams

        others |= dict(prompt=bool(prompts.prompt), token_ids=bool(prompts.token_ids))
        if wrong := next((name for name, given in others.items() if given), None):
            raise ValueError(f"--{wrong.replace('_', '-')} does not go with --input; leave one of them out")
        source = Path(self.input or "")
        found = survey(source)
        asked = Asked(source=source, survey=found, model=model, flags=_digest(params, prompts))
        check_target(Path(self.output or ""), asked)
        if found.openai is not None:
            startup.check_extra("serve", "fastapi", "pydantic")
            if params != SamplingParams():
                raise ValueError(
                    f"{self.input}: line {found.openai} is of OpenAI's form, whose body says how to sample; "
                    'sampling flags are for plain lines, {"prompt": ...}'
                )
        return asked

    def run(
        self,
        model: "Model",
        asked: "Asked",
        prompts: options.PromptFlags,
        params: "SamplingParams",
        names: list[str],
        *,
        quiet: bool,
    ) -> int:
        """Answers what is not answered yet. Returns the exit status: 1 where a line failed, in this run or before."""
        from moejax.bulk.answers import opened
        from moejax.bulk.run import answer_lines
        from moejax.bulk.work import PlainForm
        from moejax.cli.prompts import encode
        from moejax.cli.report import as_object

        source, target = asked.source, Path(self.output or "")
        form = PlainForm(
            params=params,
            encode=functools.partial(encode, model, chat=prompts.chat, system=prompts.system),
            describe=as_object,
        )
        began, tokens, total = time.perf_counter(), 0, len(asked.survey.numbers)
        with (
            opened(target, asked) as answers,
            console.progress(f"decoding {source}", quiet=quiet) as step,
        ):
            before, failed_before = len(answers.done), answers.failed

            def on_step(generated: int) -> None:
                nonlocal tokens
                tokens += generated
                seconds = time.perf_counter() - began
                failed = f", {answers.failed} failed" if answers.failed else ""
                step(f"{len(answers.done):,} of {total:,} lines{failed}, {tokens / seconds:,.0f} tokens/s")

            answer_lines(model, answers, form, names=names, on_step=on_step)
            failed, new = answers.failed, len(answers.done) - before
        if not quiet:
            seconds = time.perf_counter() - began
            kept = f", {before:,} were there before" if before else ""
            console.remark(f"{target}: {new:,} lines answered in {seconds:.1f} s ({tokens:,} tokens){kept}")
        if failed:
            kept = f" ({failed_before:,} of them in a run before)" if failed_before else ""
            console.warn(
                f"{failed:,} of {total:,} lines failed{kept}; {target} says why: delete their lines there and run the "
                "same command to try them again"
            )
        return FAILED_LINES if failed else 0


def _digest(params: "SamplingParams", prompts: options.PromptFlags) -> str:
    """Of the flags that a plain line's answer depends on, as far as they say anything."""
    from moejax.bulk.lines import short_digest

    said = {one.name: value for one in fields(params) if (value := getattr(params, one.name)) != one.default}
    return short_digest(repr((sorted(said.items()), prompts.chat, prompts.system)).encode(errors="surrogatepass"))
