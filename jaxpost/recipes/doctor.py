"""`jaxpost doctor`: data, tokenizer, template, masks and options looked at before a run. Reads top to bottom."""

import dataclasses
import datetime
import sys
from collections.abc import Sequence

from jaxpost.core.config import load_config
from jaxpost.core.errors import InputError
from jaxpost.core.files import refuse_existing, write_json
from jaxpost.data.chat.turns import Chat
from jaxpost.data.checks.context import Context
from jaxpost.data.checks.duplicates import duplicate_findings, overlap_findings
from jaxpost.data.checks.findings import Finding
from jaxpost.data.checks.inspection import Inspected, inspect
from jaxpost.data.checks.survey import Survey, packing_findings, survey
from jaxpost.data.checks.table import CHECKS
from jaxpost.data.plain import Plain
from jaxpost.data.sources import open_sources
from jaxpost.hub.model import Model, ids_of
from jaxpost.hub.source import find_folder, read_config
from jaxpost.recipes.chat_template import with_tokenizer
from jaxpost.recipes.doctor_config import DoctorConfig
from jaxpost.recipes.doctor_numerics import Deviation, compare, numerics_findings
from jaxpost.recipes.doctor_options import option_findings
from jaxpost.recipes.doctor_report import Report, print_report
from jaxpost.recipes.sft_config import SftConfig, resolve
from jaxpost.recipes.sft_setup import batch_plan
from jaxpost.train.loop import total_steps

ABOUT = (
    "Check data, tokenizer, chat template, masks and options of a run before it is made; takes the options of "
    "`jaxpost sft`. Exit status 2 when training would be wrong."
)
ORDER = ("error", "warning", "note")


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments: 0 when nothing is wrong.

    Raises:
      InputError: with the errors found, after the report.
    """
    report = run(load_config(DoctorConfig, argv, command="doctor", about=ABOUT))
    if wrong := [found for found in report.findings if found.severity == "error"]:
        names = ", ".join(found.check for found in wrong)
        raise InputError(f"the doctor found {len(wrong)} error{'s' * (len(wrong) > 1)}: {names}. See its report.")
    return 0


def run(config: DoctorConfig) -> Report:
    """Looks at everything, prints the report, and writes it to `config.json` where that is set.

    Raises:
      InputError: options, model or files that are wrong as such; nothing is printed or written then.
    """
    if config.output is not None:
        refuse_existing(config.output)
    if config.json is not None and not config.json.absolute().parent.is_dir():
        raise InputError(f"`--json` must be a file in a folder that exists; got {config.json}. Make the folder.")
    resolved = resolve(config)
    model = described(resolved)
    train, numbers, findings = _look(resolved, model)
    numerics: list[Deviation] = []
    if config.numerics and not any(found.severity == "error" for found in findings):
        numerics = compare(config, lambda text: print(text, file=sys.stderr, flush=True))
        findings += numerics_findings(numerics)
    findings.sort(key=lambda found: (ORDER.index(found.severity), list(CHECKS).index(found.check)))
    report = Report(config=config, inspected=train, numbers=numbers, findings=findings, numerics=numerics)
    print_report(report, model.tokenizer, sys.stdout)
    if config.json is not None:
        write_json(config.json, report.as_json(resolved))
    return report


def described(config: SftConfig) -> Model:
    """The model of a run without its weights: configuration, and the tokenizer that the run would take."""
    folder = find_folder(config.model)
    hf, shape = read_config(folder)
    model = Model(config=shape, params={}, folder=folder, hf_config=hf)
    return with_tokenizer(model, config.adapter, config.chat_template, trains_rows=config.full)


def context_of(model: Model, max_length: int, date: datetime.date | None = None) -> Context:
    """What rows are checked against."""
    chat = Chat(tokenizer=model.tokenizer, stop_ids=model.stop_ids)
    return Context(
        chat=chat,
        plain=Plain(tokenizer=model.tokenizer),
        vocab_size=model.config.vocab_size,
        max_length=max_length,
        stops={"the tokenizer": ids_of(model.tokenizer.eos_token_id), **model.written_stops},
        date=date,
    )


def _look(config: SftConfig, model: Model) -> tuple[Inspected, Survey | None, list[Finding]]:
    """The training data, its numbers where a row is left, and all findings but those of the numerics."""
    context = context_of(model, config.max_length, config.date)
    train = _inspect(config, context, config.data)
    findings = [*train.findings, *duplicate_findings(train.digests, train.with_prompt)]
    if config.eval_data:
        held = _inspect(config, context, config.eval_data)
        findings += [dataclasses.replace(f, evaluation=True) for f in held.findings if f.severity == "error"]
        findings += overlap_findings(train.digests, held.digests, held.with_prompt)
    if not train.epoch:
        return train, None, findings
    plan = batch_plan(config, train.epoch)
    numbers = survey(train, plan, steps=total_steps(config.steps, config.epochs, plan.steps_per_epoch))
    findings += [*packing_findings(numbers, plan), *option_findings(config, model, numbers)]
    return train, numbers, findings


def _inspect(config: SftConfig, context: Context, data: Sequence[str]) -> Inspected:
    sources, skip = open_sources(data), config.skip_bad_rows
    return inspect(context, sources, overlong=config.overlong, skip_bad=skip, seed=config.seed)
