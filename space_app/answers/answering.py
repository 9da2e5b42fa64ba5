# SPDX-License-Identifier: Apache-2.0
"""One answer as the page shows it: an ensemble, a prepared input and the unplugged devices become a `View`.

An `OpenEnsemble` is shared between visitors; a page keeps its `name` for each of them and asks `open_named` for it, so
that nobody's forgotten tab holds an ensemble in memory. A `PreparedInput` is one visitor's, and small.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from answers.inputs import PreparedInput
from answers.knowledge import is_replicated
from answers.opened import OpenEnsemble
from answers.runtimes import VisitorError
from answers.timelines import measured, predicted
from answers.views import Device, DeviceState, Timeline, View, percent
from edvit_hf.errors import DeadlineError, EDViTError, OverloadedError, QuorumError
from edvit_hf.runtime import Answer
from edvit_hf.runtime.engines import Reason
from edvit_hf.tasks import Task

logger = logging.getLogger(__name__)

FIRST_STEP: dict[Task, str] = {
    "image-classification": "Upload a picture or choose an example.",
    "audio-classification": "Record a sound, upload one or choose an example.",
    "text-classification": "Type a text or choose an example.",
}
DRAW_FIRST = "Draw a digit, upload a picture of one or choose an example."
ALL_UNPLUGGED = "Every device is unplugged, so nobody is left to answer. Plug at least one in again."
BUSY = "Many visitors ask at this moment. Try again in a few seconds."
TOO_FEW = "Too few devices gave a usable answer, and what is left would be a guess. Plug others in, or try again."
TOO_SLOW = "This ensemble does not answer in time. Try again, or choose another one."
UNREADABLE = "The sub-models cannot read this input. Try another one, or choose an example."

_REASONS: dict[Reason, str] = {
    "absent": "unplugged",
    "not loaded": "not loaded here",
    "breaker": "left alone after it failed; it is asked again soon",
    "deadline": "too late",
    "unavailable": "cannot be reached",
    "failed": "failed",
}
_UNUSABLE = "sent values that cannot be used"


def view(
    opened: OpenEnsemble, prepared: PreparedInput | None, unplugged: Sequence[int], fleet: str | None = None
) -> View:
    """The page for one input and one set of unplugged devices. Raises no `EDViTError`: it becomes a "refused" view.

    The sub-models that are plugged in run once; the fusion head is asked again for each device that might go missing
    too. With devices unplugged all sub-models run once more, so that the sentence can say what unplugging changed.

    Args:
        opened: The ensemble.
        prepared: The input; None, or one that was prepared for another ensemble, gives the empty page.
        unplugged: Indices of devices; those that the ensemble has not are ignored.
        fleet: Name out of `opened.plans` for the predicted timeline; None: the first of them.
    """
    return replace(_view(opened, prepared, unplugged, fleet), joined=opened.joined)


def _view(opened: OpenEnsemble, prepared: PreparedInput | None, unplugged: Sequence[int], fleet: str | None) -> View:
    count = len(opened.devices)
    out = tuple(sorted({int(index) for index in unplugged if 0 <= int(index) < count}))
    waiting = tuple(_waiting(device, device.index in out) for device in opened.devices)
    if prepared is not None and prepared.ensemble != opened.name:
        prepared = None
    if len(out) == count:
        return _refused(ALL_UNPLUGGED, prepared, waiting)
    if prepared is None:
        return View(state="empty", sentence=first_step(opened), devices=waiting, card_note=card_note(opened, len(out)))
    if is_replicated(opened.runtime.manifest):
        return _of_replicas(opened, prepared, out)
    try:
        answer, others = _answers(opened, prepared, out)
        whole = opened.runtime.predict(prepared.inputs) if out else answer
    except EDViTError as error:
        logger.info("no answer: %s", error)
        return _refused(_said(error), prepared, waiting)
    timelines: list[Timeline] = [measured(answer, opened.schedule)]
    name = fleet if fleet in opened.plans else next(iter(opened.plans), None)
    if name is not None:
        timelines.append(predicted(name, opened.plans[name], answer.present))
    missing = count - sum(answer.present)
    return View(
        state="degraded" if answer.degraded else "answered",
        sentence=" ".join(filter(None, [_sentence(whole, answer), prepared.remark])),
        label=answer.label,
        probabilities=_ranked(answer),
        devices=tuple(_device(device, answer, others) for device in opened.devices),
        timelines=tuple(timelines),
        seen=prepared.seen,
        tokens=prepared.tokens,
        card_note=" ".join(filter(None, [card_note(opened, missing), prepared.caution])),
    )


def _of_replicas(opened: OpenEnsemble, prepared: PreparedInput, out: tuple[int, ...]) -> View:
    """The page of one model that every device holds: whoever is left gives the same answer."""
    try:
        answer = opened.runtime.predict(prepared.inputs)
    except EDViTError as error:
        logger.info("no answer: %s", error)
        return _refused(_said(error), prepared, tuple(_waiting(each, each.index in out) for each in opened.devices))
    left = len(opened.devices) - len(out)
    others = dict.fromkeys([0], answer.label) if left > 1 else {}
    shown = _device(replace(opened.devices[0], index=0), answer, others)
    said = f"The answer is {answer.label} with {_share(answer)}, in {answer.total_milliseconds:.1f} ms on this machine."
    same = f"Each of the {left} devices that are left gives this very answer by itself." if left > 1 else ""
    only = "The only device that is left gives it by itself." if left == 1 else ""
    return View(
        state="answered",
        sentence=" ".join(filter(None, [said, same, only, prepared.remark])),
        label=answer.label,
        probabilities=_ranked(answer),
        devices=tuple(
            _waiting(each, True) if each.index in out else replace(shown, index=each.index) for each in opened.devices
        ),
        timelines=(measured(answer, opened.schedule),),
        seen=prepared.seen,
        tokens=prepared.tokens,
        card_note=" ".join(filter(None, [card_note(opened, 0), prepared.caution])),
    )


def _ranked(answer: Answer) -> tuple[tuple[str, float], ...]:
    """Every class with its probability, the most probable first."""
    order = np.argsort(-answer.probabilities[0], kind="stable")
    return tuple((answer.label_names[i], float(answer.probabilities[0, i])) for i in order)


def first_step(opened: OpenEnsemble) -> str:
    """What to do before there is an input."""
    return DRAW_FIRST if opened.can_draw else FIRST_STEP[opened.task]


def card_note(opened: OpenEnsemble, num_absent: int) -> str:
    """The accuracy that the card reports with so many devices absent; empty if it does not."""
    rows = {row.num_absent: row for row in opened.absent}
    found, whole, count = rows.get(num_absent), rows.get(0), len(opened.devices)
    if found is None:
        return ""
    if num_absent == 0:
        return f"The card reports {percent(found.mean)} on its test items with all {count} devices."
    spread = f"mean of {found.num_subsets} subsets: {percent(found.low)} to {percent(found.high)}"
    all_there = "" if whole is None else f"; {percent(whole.mean)} with all"
    return (
        f"The card reports {percent(found.mean)} on its test items with {num_absent} of {count} devices absent "
        f"({spread}){all_there}."
    )


def _answers(opened: OpenEnsemble, prepared: PreparedInput, out: tuple[int, ...]) -> tuple[Answer, dict[int, str]]:
    """The answer without `out`, and by device the label if that one were missing too."""
    left = [index for index in range(len(opened.devices)) if index not in out]
    subsets = [(index,) for index in left] if len(left) > 1 else []
    try:
        answer, found = opened.runtime.predict_without(prepared.inputs, subsets, absent=out)
    except QuorumError:  # the only one that answered stands alone: nobody is left without it
        return opened.runtime.predict(prepared.inputs, absent=out), {}
    names = opened.runtime.label_names
    return answer, {i: names[int(without[0].argmax())] for (i,), without in zip(subsets, found, strict=True)}


def _waiting(device: Device, is_out: bool) -> Device:
    return replace(device, state="unplugged", reason=_REASONS["absent"]) if is_out else device


def _device(device: Device, answer: Answer, others: dict[int, str]) -> Device:
    index = device.index
    vote = answer.votes[index]
    if vote is None:
        reason = answer.missing[index]
        state: DeviceState = "unplugged" if reason == "absent" else "failed"
        return replace(device, state=state, reason=_REASONS.get(reason, _UNUSABLE))
    names, winner, without = [*device.classes, "other"], int(vote[0].argmax()), others.get(index)
    return replace(
        device,
        state="answered",
        vote=names[winner] if winner < len(names) else "other",
        vote_share=float(vote[0, winner]),
        milliseconds=answer.milliseconds[index],
        bytes_sent=answer.bytes_sent[index],
        answer_without=without,
        changes_answer=without is not None and without != answer.label,
    )


def _sentence(whole: Answer, answer: Answer) -> str:
    """The answer in words, and what missing devices changed."""
    said = f"The answer is {answer.label} with {_share(answer)}"
    count, left = len(answer.present), sum(answer.present)
    if not answer.degraded:
        together = f"all {count} devices" if count > 1 else "the only device"
        return f"{said}, from {together}, in {answer.total_milliseconds:.1f} ms on this machine."
    parts = [f"{said}, from {left} of {count} devices."]
    if answer.present != whole.present:
        verdict = "It stays the same" if answer.label == whole.label else "It changes"
        parts.append(f"{verdict}: with all of them it was {whole.label} with {_share(whole)}.")
    names = answer.missing_classes
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    parts.append(f"No device that knows {shown} takes part." if names else "Those that are left know every class.")
    return " ".join(parts)


def _said(error: EDViTError) -> str:
    """An error of the runtime in a visitor's words."""
    if isinstance(error, VisitorError):
        return str(error)
    if isinstance(error, OverloadedError):
        return BUSY
    if isinstance(error, DeadlineError):
        return TOO_SLOW
    return TOO_FEW if isinstance(error, QuorumError) else UNREADABLE


def _refused(sentence: str, prepared: PreparedInput | None, devices: tuple[Device, ...]) -> View:
    seen, tokens = (None, ()) if prepared is None else (prepared.seen, prepared.tokens)
    return View(state="refused", sentence=sentence, devices=devices, seen=seen, tokens=tokens)


def _share(answer: Answer) -> str:
    """The winner's probability."""
    return percent(float(answer.probabilities[0].max()))
