"""What may ail a run: a function a disease, which looks at the evidence and names what it sees with its numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable, Optional

import numpy as np

from ..augment import Augment
from ..errors import brief
from ..run_state import merit
from . import remedies
from .evidence import Evidence
from .remedies import Advice

if TYPE_CHECKING:
    from .examination import Norm

PARTS = 20
"""Equal parts of a run whose mean losses are its trend. The shortest run that is judged has a step for each."""
DIVERGED = 1.5
"""Loss at the end, by that of a network that knows nothing. Guessing is never so wrong: being sure and wrong is."""
RISEN = 1.2
"""Loss of the last tenth of a run, by the lowest of its tenths. In a healthy run of ours the last is the lowest; those
of a run of 4 epochs (40 steps each) still differ by a tenth."""
SHOT_UP = 1.5
"""Loss of a part, by the lowest one before, or by that of a network that knows nothing."""
BEFORE = 20
"""Steps whose median says what is usual."""
SPIKE = 2.0
"""Loss of a step, by what is usual. In healthy runs of ours the largest of thousands of steps is 1.6."""
SPIKES = 0.01
"""Share of the steps that may be spikes: one batch in a hundred may hold pictures that are hard."""
NOTICEABLE = 0.1
"""Nats of loss below which no rise is worth a word: a tenth less probability for the right class."""
EVAL_RISEN = 1.1
"""Loss on the validation part, by its lowest, that training has made worse (Prechelt 1998, "Early stopping - but
when?", GL_10: the generalisation loss exceeds 10 per cent)."""
GAP, GAP_SHARE = 0.05, 2 / 3
"""Accuracy on training pictures less that on others, and what share of the error on others that is. With two thirds,
more of the error comes from not generalising than twice over from not fitting."""
UNFIT = 0.2
"""Share of the training pictures that a network that fits them may tell wrong; of one that does not, what it holds
against a label has little weight."""
FLAT = 0.01
"""Share of the loss that the last 15 % of a run take off the 15 % before; 60 such steps would not halve it."""
SOLVED = 0.1
"""Loss, by that of a network that knows nothing, below which a flat curve is not a plateau but the end."""
RATE_LEFT = 0.3
"""Learning rate in the last 30 % of a run, by the largest: below, a curve is flat as the schedule let it settle."""
LITTLE = 0.5
"""Share of its first loss that a run loses which has barely begun."""
UNMOVED = 0.05
"""Share of its first loss below which a loss has not moved: what the first batches differ by."""
STRAIGHT = 0.5
"""Fall of the loss over the last third of all the learning rate spent, by that over the first. At a fitting rate the
first third takes nearly all (20 : 1 in a healthy run of ours); in a run too slow, every third takes the same."""
SHORT_WAY = 0.1
"""Length of all steps of a run together, by the size of the weights, at which they are still much what they were drawn
as. (A single step is usually a thousandth: Karpathy's "babysitting the learning process", CS231n.)"""
EXPLODED = 10.0
"""Norm of the gradient, by its median in the steps before (Pascanu et al. 2013, "On the difficulty of training
recurrent neural networks": clipping works from half to ten times the average norm, so what lies beyond is cut for
good)."""
UNEVEN = 100.0
"""Norm of a layer's gradient by that of the head, where the way back begins, either way. Within a factor of five in
healthy runs of ours."""
DEAD, DEAD_SHARE = 0.01, 0.1
"""Spread of a channel behind its norm, by that of the median channel, that says nothing; and the share of a layer's
channels that may be so: what a tenth of the channels did is what magnitude pruning takes away without harm."""
FORGOTTEN = 0.1
"""Accuracy that the running statistics lose against those of the batch itself, on the same pictures; three standard
errors of a share of 256 pictures."""
DOUBT = 0.5
"""Probability of the given class, by chance (1 / classes), below which the network speaks against it."""
WRONG_LABELS = 0.03
"""Share of label suspects: ten well-known test sets have 3.3 % wrong labels in the mean (Northcutt, Athalye & Mueller
2021, "Pervasive label errors in test sets"), so more is worse than usual."""
IMBALANCE = 10.0
"""Pictures of the largest class by those of the smallest: the mildest of the long-tailed sets that methods against
imbalance are measured on (Cao et al. 2019, LDAM: 10 and 100)."""
STARVING = 0.2
"""Share of its time that training waits for pictures; a fifth is more than any tuning of the network gives back."""
SHOWN = 5
"""Names that a line of evidence gives."""


class NotJudged(Exception):
    """There is not enough to tell; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was seen, a line each, and what to try, the most likely to help first."""

    evidence: tuple[str, ...]
    advice: tuple[Advice, ...]


# --- the loss ------------------------------------------------------------------------------------------


def diverging(run: Evidence) -> Optional[Finding]:
    """The loss is no number any more, or far above that of a network that knows nothing."""
    losses = run.losses
    bad = np.flatnonzero(~np.isfinite(losses))
    if run.not_finite:
        line = f"the loss was no number at {_at(run, len(losses) + 1)}, whose batch held {_some(run.not_finite)}"
        if not len(losses):
            return Finding((line,), remedies.other_start(run))
    elif bad.size:
        line = f"the loss is no number in {bad.size} of {len(losses)} steps, first at {_at(run, bad[0] + 1)}"
    else:
        level, ignorant = _parts(run)[-1], _ignorant(run)
        if level <= DIVERGED * ignorant:
            return None
        line = f"the loss ends at {level:.3g}, above {DIVERGED:g} x {ignorant:.3g}, what knowing nothing costs"
    return Finding((line,), remedies.calmer(run, 10))


def rising(run: Evidence) -> Optional[Finding]:
    """The loss ends higher than it was, and by more than chance."""
    _parts(run)  # there are enough steps
    with contextlib.suppress(NotJudged):
        if diverging(run):
            return None
    tenths = np.array_split(_finite(run), PARTS // 2)
    levels, errors = np.array([(part.mean(), part.std() / math.sqrt(len(part))) for part in tenths]).T
    low = int(np.argmin(levels))
    rise, error = levels[-1] - levels[low], math.hypot(errors[-1], errors[low])
    if low == len(levels) - 1 or levels[-1] < RISEN * levels[low] or rise < max(NOTICEABLE, 3 * error):
        return None
    at = _at(run, round((low + 0.5) / len(levels) * len(_finite(run))))
    lines = (f"the training loss was {levels[low]:.3g} around {at} and is {levels[-1]:.3g} in the last tenth",)
    return Finding(lines, remedies.calmer(run, 3))


def plateau(run: Evidence) -> Optional[Finding]:
    """The loss does not get better, though there is much to gain and the learning rate is still high."""
    parts, rates = _parts(run), _need_rates(run)
    if diverging(run) or rising(run) or (run.finished and rate_too_low(run)):
        return None
    least = least_loss(run)
    before, last, ignorant = parts[-6:-3].mean() - least, parts[-3:].mean() - least, _ignorant(run) - least
    share = rates[-len(rates) * 3 // 10 :].mean() / rates.max()
    if before - last >= FLAT * before or last < SOLVED * ignorant or share < RATE_LEFT:
        return None
    if run.finished is False and run.recipe and run.recipe.schedule.name != "constant":
        raise NotJudged("the run is under way, and its learning rate is yet to fall")
    before, last = before + least, last + least
    lines = (
        f"the training loss is {last:.3g} over the last 15 % of the run, {before:.3g} over the 15 % before",
        f"the learning rate is still at {share:.0%} of its largest in the last 30 %",
    )
    advice = [
        Advice("let the learning rate fall, so that the weights settle", remedies.falling(run)),
        Advice("take smaller steps", remedies.rate(run, 1 / 3)),
        *remedies.capacity(run),
    ]
    return Finding(lines, tuple(advice))


# --- the learning rate ---------------------------------------------------------------------------------


def rate_too_high(run: Evidence) -> Optional[Finding]:
    """The loss shoots up, or jumps, while the learning rate is high."""
    rates, lines = _need_rates(run), []
    if run.not_finite:
        lines.append(f"the loss was no number at {_at(run, len(run.losses) + 1)}, at the learning rate {rates[-1]:.3g}")
        return Finding(tuple(lines), remedies.calmer(run, 10))
    parts, losses, ignorant = _parts(run), _finite(run), _ignorant(run)
    lowest = np.minimum.accumulate(np.concatenate([[ignorant], parts[:-1]]))
    top = int(np.argmax(parts / lowest))
    step = round((top + 0.5) / PARTS * len(losses))
    high = rates[min(step, len(rates) - 1)] >= 0.1 * rates.max()
    if parts[top] >= SHOT_UP * lowest[top] and parts[top] - lowest[top] >= NOTICEABLE and high:
        lines.append(
            f"the training loss went from {lowest[top]:.3g} up to {parts[top]:.3g} around {_at(run, step)}, "
            f"at the learning rate {rates[min(step, len(rates) - 1)]:.3g}"
        )
    mixes = run.recipe and run.recipe.augment.mixes  # then the loss jumps with what a batch was mixed of
    spikes = [] if mixes else _spikes(losses, ignorant)
    if len(spikes) > max(2, SPIKES * len(losses)):
        lines.append(
            f"{len(spikes)} of {len(losses)} steps have more than {SPIKE:g} times the loss of those before, "
            f"such as {_at(run, spikes[0] + 1)}: {losses[spikes[0]]:.3g}"
        )
    return Finding(tuple(lines), remedies.calmer(run, 3)) if lines else None


def rate_too_low(run: Evidence) -> Optional[Finding]:
    """At the end of the run the loss still falls as evenly as at its beginning, and has lost little."""
    rates, parts, losses = _need_rates(run), _parts(run), _finite(run)
    _must_be_finished(run)
    start = losses[: max(3, len(losses) // 100)].mean()
    spent = np.cumsum(rates[: len(losses)])
    if run.classes and start < 0.5 * math.log(len(run.classes)):
        return None  # it began with what it knew; there may be little to learn
    floor = least_loss(run)
    lost = 1 - (parts[-1] - floor) / max(start - floor, 1e-12)
    thirds = np.searchsorted(spent, spent[-1] * np.arange(1, 4) / 3)
    width = max(3, len(losses) // PARTS)
    levels = [start, *(losses[max(0, end - width) : end + 1].mean() for end in thirds)]
    first, last = levels[0] - levels[1], levels[2] - levels[3]
    step = _step_size(run)
    way = None if step is None else step * float(spent[-1] / rates.max())
    straight = UNMOVED < lost < LITTLE and last >= STRAIGHT * first
    if not straight and not (abs(lost) <= UNMOVED and way is not None and way < SHORT_WAY):
        return None
    lines = [f"the training loss went from {start:.3g} to {parts[-1]:.3g} in the whole run"]
    if straight:
        lines.append(f"the last third of the learning rate spent took off {last:.2g}, the first third {first:.2g}")
    if step is not None:
        lines.append(
            f"a step changes the weights by about {100 * step:.2g} % at most, all together by {100 * way:.2g} %"
        )
    return Finding(tuple(lines), (Advice("take larger steps", remedies.rate(run, 10)), *remedies.longer(run)))


# --- fit -----------------------------------------------------------------------------------------------


def overfitting(run: Evidence) -> Optional[Finding]:
    """What is learnt of the training pictures does not hold of others."""
    told, lines = run.evaluations, []
    low = int(np.argmax(merit(told.loss, "loss")))
    after = told.loss[low + 1 :]
    if (
        not least_loss(run)  # by soft targets a network learns to be less sure, and this loss blames it
        and not (run.recipe and run.recipe.distill)
        and len(after) > 1
        and after[-3:].min() >= EVAL_RISEN * told.loss[low]
        and told.train_loss[-1] < told.train_loss[low]
    ):
        lines.append(
            f"the validation loss rose from {told.loss[low]:.3g} in epoch {low + 1} to {told.loss[-1]:.3g} at last, "
            f"while the training loss fell from {told.train_loss[low]:.3g} to {told.train_loss[-1]:.3g}"
        )
    train, gap = _fit(run)
    sure = gap - 2 * _sampling_error(run)
    if sure >= GAP and sure >= GAP_SHARE * (1 - told.top1[told.best]):
        lines.append(
            f"in epoch {told.best + 1}, {100 * told.top1[told.best]:.2f} % of the validation pictures are told right, "
            f"{100 * train:.2f} % of the training pictures {_how(run)}"
        )
    if not lines:
        _must_be_seen_plain(run)
        return None
    return Finding(tuple(lines), remedies.regularise(run))


def underfitting(run: Evidence) -> Optional[Finding]:
    """Not even the training pictures are told right."""
    told = run.evaluations
    train, gap = _fit(run)
    if 1 - train - 2 * _sampling_error(run) < UNFIT or gap > (1 - GAP_SHARE) * (1 - told.top1[told.best]):
        return None
    _must_be_finished(run)
    _must_be_seen_plain(run)
    for name, other in (
        *(("diverging", diverging), ("learning rate too high", rate_too_high)),
        ("learning rate too low", rate_too_low),
    ):
        if run.rates is not None and other(run):
            raise NotJudged(f"see first: {name}")
    if run.examination and statistics_off(run):
        raise NotJudged("see first: batch-norm statistics off")
    lines = [
        f"in epoch {told.best + 1}, {100 * train:.2f} % of the training pictures are told right {_how(run)}, "
        f"{100 * told.top1[told.best]:.2f} % of the validation pictures"
    ]
    capacity, longer = remedies.capacity(run), remedies.longer(run)
    advice = (*capacity, *longer)
    parts = _parts(run)
    if parts[-1] < (1 - 5 * FLAT) * parts[-6:-3].mean():
        lines.append(f"the training loss still fell at the end, from {parts[-6:-3].mean():.3g} to {parts[-1]:.3g}")
        advice = (*longer, *capacity)
    return Finding(tuple(lines), advice)


# --- the network ---------------------------------------------------------------------------------------


def dead_units(run: Evidence) -> Optional[Finding]:
    """Channels that say the same of every picture."""
    lines = []
    for norm in run.examination.norms:
        dead = norm.spread < DEAD * np.median(norm.spread)
        if not np.median(norm.spread):
            dead = norm.spread == 0
        if dead.mean() > DEAD_SHARE:
            lines.append(
                f"{norm.name}: {dead.sum()} of {dead.size} channels hardly vary over {run.examination.batch} training "
                f"pictures, such as {_some([str(i) for i in np.flatnonzero(dead)])}"
            )
    if not lines:
        return None
    advice = [
        Advice("smaller steps kill fewer units; those that are dead stay so", remedies.rate(run, 1 / 3)),
        *remedies.clip(run),
        *remedies.warm_up(run),
    ]
    if run.recipe and run.recipe.model.weights:
        advice.append(Advice("if the checkpoint the run began with has them, begin without", ("model.weights=null",)))
    return Finding(tuple(lines), tuple(advice))


def exploding_gradients(run: Evidence) -> Optional[Finding]:
    """Gradients far above what they were, or those of a layer far above those of the others."""
    lines, norms = [], run.norms
    if len(norms) >= PARTS:
        stretches = [part for part in np.split(norms, _thaws(run)) if len(part)]  # of other layers, of another size
        usual = np.concatenate(list(map(_before, stretches)))
        high = np.flatnonzero(norms > EXPLODED * usual)
        if len(high) > max(2, SPIKES * len(norms)):
            worst = high[np.argmax(norms[high] / usual[high])]
            lines.append(
                f"the gradient norm is more than {EXPLODED:g} times that of the steps before in {len(high)} of "
                f"{len(norms)} steps; at {_at(run, run.norm_steps[worst])} it is {norms[worst]:.3g}, before "
                f"{usual[worst]:.3g}"
            )
        for number, stretch in enumerate(stretches, 1):
            tenths = [np.median(part) for part in np.array_split(stretch, 10)] if len(stretch) >= PARTS else [0.0]
            if tenths[-1] > EXPLODED * min(tenths):
                where = f" from thaw {number - 1} to the next" if number < len(stretches) else ""
                lines.append(
                    f"the gradient norm grew{where} from {min(tenths):.3g} to {tenths[-1]:.3g} in the last tenth"
                )
    for name, share in _by_layer(run).items():
        if share > UNEVEN:
            lines.append(f"{name}: its gradient is {share:.3g} times that of the head")
    if lines:
        return Finding(
            tuple(lines),
            (*remedies.clip(run), *remedies.warm_up(run), Advice("take smaller steps", remedies.rate(run, 1 / 3))),
        )
    if run.layers is None:
        raise NotJudged(f"layer by layer: {run.gaps['layers']}")
    if len(norms) < PARTS:
        raise NotJudged(f"there are {len(norms)} gradient norms, fewer than {PARTS}")
    return None


def vanishing_gradients(run: Evidence) -> Optional[Finding]:
    """Gradients of a layer far below those of the others."""
    lines = tuple(
        f"{name}: its gradient is 1/{1 / share:.3g} of that of the head" if share else f"{name}: it has none"
        for name, share in _by_layer(run).items()
        if share < 1 / UNEVEN
    )
    if not lines:
        return None
    advice = [Advice("these optimisers scale a step by the gradients of each weight", ("optimizer.name=adamw",))]
    if run.recipe and run.recipe.optimizer.name != "sgd":
        advice = [Advice("an epsilon above the gradients holds their steps back", ("optimizer.epsilon=1e-10",))]
    if run.recipe and run.recipe.model.weights:
        advice.append(Advice("if the checkpoint the run began with is the cause", ("model.weights=null",)))
    advice.append(Advice("a network of half the depth has a shorter way back", remedies.shape(run, depth=0.5)))
    return Finding(lines, tuple(advice))


def statistics_off(run: Evidence) -> Optional[Finding]:
    """The running statistics of batch norm are not those of the training pictures, and it does harm."""
    found = run.examination
    lost = found.own - found.remembered
    error = math.sqrt((found.own * (1 - found.own) + found.remembered * (1 - found.remembered)) / found.batch)
    if lost < max(FORGOTTEN, 2 * error):
        return None

    def off(norm: Norm) -> float:
        return float(np.median(np.abs(norm.mean - norm.running_mean) / np.sqrt(norm.variance + 1e-5)))

    worst = max(found.norms, key=off)
    ratio = float(np.median((worst.variance + 1e-5) / (worst.running_variance + 1e-5)))
    lines = (
        f"{100 * found.remembered:.2f} % of {found.batch} training pictures are told right by the running statistics, "
        f"{100 * found.own:.2f} % by those of the pictures themselves",
        f"most off is {worst.name}: its mean by {off(worst):.2g} standard deviations (the median channel), "
        f"its variance is {ratio:.2g} times what is remembered",
    )
    advice = [
        Advice("the statistics follow within some 20 steps; more steps let them arrive", remedies.more_steps(run)),
        *remedies.longer(run),
        Advice(
            "with a rate that falls to 0 the weights hold still, and the statistics catch up", remedies.falling(run)
        ),
    ]
    return Finding(lines, tuple(advice))


# --- the data ------------------------------------------------------------------------------------------


def label_noise(run: Evidence) -> Optional[Finding]:
    """Pictures whose given class the network speaks against while it is sure of another."""
    found = run.examination
    if found.top1 < 1 - UNFIT:
        raise NotJudged(f"the network tells {100 * found.top1:.2f} % of the training pictures right; its word is weak")
    places, others = suspects(found.labels, found.probabilities)
    share = len(places) / len(found.labels)
    if share < WRONG_LABELS:
        return None

    def word(i: int, other: int) -> str:
        sure = f"{found.probabilities[i, other]:.0%} {class_name(run, other)}"
        return f"{found.names[i]} ({class_name(run, found.labels[i])}; {sure})"

    surest = list(map(word, places[:SHOWN].tolist(), others[:SHOWN].tolist()))

    lines = (
        f"{len(places)} of {len(found.labels)} training pictures ({100 * share:.1f} %) look like another class than "
        "the one they are given",
        f"the surest: {_some(list(map(brief, surest)), len(places))}",
    )
    advice = (
        Advice("look at these pictures and mend their labels; --json lists all"),
        Advice("softer targets make less of a wrong label", ("train.label_smoothing=0.1",)),
        Advice(
            "a network that is stopped early has not learnt them by heart",
            (f"train.patience={remedies.patience(run)}",),
        ),
    )
    return Finding(lines, advice)


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of pictures whose label is likely wrong, the likeliest first, and the classes they look like.

    They are off the diagonal of the confident joint (Northcutt, Jiang & Chuang 2021, "Confident learning", equations
    1 and 2): of the classes whose probability reaches the mean that pictures given that class have, the most probable
    is not the given one. Beyond that, the given class must have less than ``DOUBT`` times the probability of chance,
    because pictures that are merely hard are off the diagonal as well.

    Args:
        labels: int64 (samples,).
        probabilities: float64 (samples, classes).

    Returns:
        Two of int64 (suspects,).
    """
    count, classes = probabilities.shape
    own = probabilities[np.arange(count), labels]
    pictures = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        usual = np.bincount(labels, own, classes) / pictures
    sure = np.where(probabilities >= np.where(pictures > 0, usual, np.inf), probabilities, -1.0)
    other = sure.argmax(axis=1)
    found = (sure.max(axis=1) >= 0) & (other != labels) & (own < DOUBT / classes)
    margin = own - sure.max(axis=1)
    places = np.flatnonzero(found)
    places = places[np.argsort(margin[places], kind="stable")]
    return places, other[places]


def class_imbalance(run: Evidence) -> Optional[Finding]:
    """Some classes have many times the pictures of others."""
    counts = run.counts
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[many] < IMBALANCE * max(counts[few], 1):
        return None
    rare = np.flatnonzero(counts * IMBALANCE <= counts[many])
    lines = [
        f"{class_name(run, many)} has {counts[many]} training pictures, {class_name(run, few)} {counts[few]}; "
        f"{len(rare)} of {len(counts)} classes have a tenth of the largest, or less"
    ]
    if run.recalls is not None and np.isfinite(run.recalls[rare]).any():
        others = np.setdiff1d(np.arange(len(counts)), rare)
        lines.append(
            f"of their validation pictures {100 * np.nanmean(run.recalls[rare]):.2f} % are told right in the mean, "
            f"of the other classes {100 * np.nanmean(run.recalls[others]):.2f} %"
        )
    advice = [
        Advice("name the pictures of rare classes several times in a table (data.dataset=csv), or collect more"),
        *remedies.augment(run),
    ]
    return Finding(tuple(lines), tuple(advice[:3]))


def starving(run: Evidence) -> Optional[Finding]:
    """Training waits for its pictures."""
    if len(run.waiting) < 2:
        raise NotJudged("there is no second epoch; the first one decodes and starts up")
    share = float(np.median(run.waiting[1:]))
    if share < STARVING:
        return None
    lines = [f"training waited for pictures {100 * share:.0f} % of its time"]
    advice = []
    if run.recipe:
        workers, cpus = run.recipe.data.workers, run.cpus or 1
        lines[0] += f", with data.workers={workers}" + (f" on {cpus} cores" if run.cpus else "")
        more = max(2, 2 * workers)
        advice.append(
            Advice("let more processes read pictures", (f"data.workers={min(more, max(cpus, workers + 1))}",))
        )
    advice.append(Advice("shrink the pictures on disk to little more than the network's input, once and for all"))
    return Finding(tuple(lines), tuple(advice))


# --- what the findings share ---------------------------------------------------------------------------


def _finite(run: Evidence) -> np.ndarray:
    return run.losses[np.isfinite(run.losses)]


def _parts(run: Evidence) -> np.ndarray:
    """Return the mean loss of ``PARTS`` equal parts of the run."""
    losses = _finite(run)
    if len(losses) < PARTS:
        raise NotJudged(f"the run has {len(losses)} steps; a trend takes {PARTS}")
    return np.array([part.mean() for part in np.array_split(losses, PARTS)])


def _need_rates(run: Evidence) -> np.ndarray:
    if len(run.rates) < max(len(run.losses), 1) or not run.rates.max() > 0:
        raise NotJudged("the learning rate is not recorded for every step")
    return run.rates


def _ignorant(run: Evidence) -> float:
    """Return the loss of a network that knows nothing: ln(classes), or what the run began with if that is more."""
    first = float(_finite(run)[0])
    if not run.classes and first < math.log(2):  # what knowing nothing of two classes costs
        raise NotJudged("the run began with what it knew, and how many classes there are is not recorded")
    return max(first, math.log(len(run.classes)) if run.classes else 0.0)


def least_loss(run: Evidence) -> float:
    """Return the entropy of the recipe's targets, in nats, below which no training loss goes; 0 where it is not known.

    Label smoothing leaves every class a share, and mixing two pictures a share to each of their classes. What a teacher
    adds is left out.
    """
    if run.recipe is None or not run.classes:
        return 0.0
    settings, classes = run.recipe.augment, len(run.classes)
    whole = float(_entropy(np.ones(1), run.recipe.train.label_smoothing, classes))
    mixed = [
        float(_entropy(np.random.default_rng(0).beta(alpha, alpha, 10_000), run.recipe.train.label_smoothing, classes))
        for alpha in (settings.mixup, settings.cutmix)
        if alpha
    ]
    if len(mixed) == 2:
        mixed = [(1 - settings.mix_switch_prob) * mixed[0] + settings.mix_switch_prob * mixed[1]]
    chance = settings.mix_prob * (1 - 1 / classes) if mixed else 0.0  # of two classes in one picture
    least = (1 - chance) * whole + (chance * mixed[0] if mixed else 0.0)
    return least * (1 - run.recipe.distill.alpha if run.recipe.distill else 1)


def _entropy(share: np.ndarray, smoothing: float, classes: int) -> np.floating:
    """Return the mean entropy of targets that give one class ``share`` and another the rest, smoothed."""
    base = smoothing / classes
    two = [base + (1 - smoothing) * part for part in (share, 1 - share)]
    parts = [*two, np.full(1, base)]
    first, second, rest = (-(part * np.log(np.maximum(part, np.finfo(float).tiny))).mean() for part in parts)
    return first + second + (classes - 2) * rest


def _thaws(run: Evidence) -> list[int]:
    """Return the places in ``run.norms`` from which on more layers were trained."""
    if not run.recipe or not run.evaluations:
        return []
    ends = run.evaluations.ends
    steps = [ends[stage.epoch - 1] for stage in run.recipe.finetune.unfreeze if 0 < stage.epoch <= len(ends)]
    return np.searchsorted(run.norm_steps, steps, side="right").tolist()


def _before(values: np.ndarray) -> np.ndarray:
    """Return the median of the ``BEFORE`` values before each; infinite where there are fewer."""
    usual = np.full(len(values), np.inf)
    if len(values) > BEFORE:
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], BEFORE)
        usual[BEFORE:] = np.median(windows, axis=1)
    return usual


def _spikes(losses: np.ndarray, ignorant: float) -> np.ndarray:
    """Return the steps (from 0) whose loss jumps: by ``SPIKE``, to what matters, and beyond the scatter of the run."""
    usual = _before(losses)
    with np.errstate(invalid="ignore"):
        scatter = 1.4826 * np.median(np.abs(losses - usual)[BEFORE:]) if len(losses) > BEFORE else np.inf
        high = (losses > SPIKE * usual) & (losses - usual > 6 * scatter)
    return np.flatnonzero(high & (losses > SOLVED * ignorant))


def _by_layer(run: Evidence) -> dict[str, float]:
    """Return the median gradient norm of every layer by that of the head."""
    usual = {name: float(np.median(values)) for name, values in (run.layers or {}).items()}
    head = usual.get("head")
    return {name: value / head for name, value in usual.items()} if head else {}


def _step_size(run: Evidence) -> Optional[float]:
    """Return about how much of a weight a step of the largest learning rate changes at most.

    Adam's step of a weight is the learning rate, LAMB's that share of the layer's norm; SGD's momentum of 0.9 adds up
    ten gradients.
    """
    if run.recipe is None or not run.weight_size:
        return None
    name, rate = run.recipe.optimizer.name, float(run.rates.max())
    if name == "sgd":
        return None if run.norms is None else 10 * rate * float(np.median(run.norms)) / run.weight_norm
    return rate if name == "lamb" else rate / run.weight_size


def _fit(run: Evidence) -> tuple[float, float]:
    """Return the accuracy on training pictures in the best epoch, and how much less it is on the validation part."""
    told = run.evaluations
    if not np.isfinite(told.top1[told.best]):
        raise NotJudged("the accuracy on the validation part is no number")
    train = float(run.examination.top1 if run.examination else told.train_top1[told.best])
    return train, train - float(told.top1[told.best])


def _sampling_error(run: Evidence) -> float:
    """Return the standard error of the accuracy on training pictures, which is that of a sample of them."""
    found = run.examination
    if found is None:
        return 0.0
    count, total = len(found.labels), found.total
    return math.sqrt(found.top1 * (1 - found.top1) / count * (1 - count / total))


def _how(run: Evidence) -> str:
    found = run.examination
    return f"(not augmented, {len(found.labels)} of {found.total})" if found else "(as training saw them)"


def _must_be_seen_plain(run: Evidence) -> None:
    if run.examination is None and (run.recipe is None or run.recipe.augment != Augment()):
        raise NotJudged(f"training pictures were only seen augmented: {run.gaps['examination']}")


def _must_be_finished(run: Evidence) -> None:
    if run.finished is None:
        raise NotJudged(run.gaps["finished"])
    if not run.finished:
        done = len(run.evaluations.ends) if run.evaluations else 0
        raise NotJudged(f"the run is not at its end: {done} of {run.recipe.epochs} epochs")


def _at(run: Evidence, step: int) -> str:
    """Return where in the run a step is, counted from 1."""
    if run.evaluations is None:
        return f"step {step}"
    return f"step {step} (epoch {int(np.searchsorted(run.evaluations.ends, step)) + 1})"


def _some(names: Sequence[str], total: Optional[int] = None) -> str:
    total = len(names) if total is None else total
    more = f" and {total - SHOWN} more" if total > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def class_name(run: Evidence, label: int) -> str:
    """Return what to call a label."""
    return run.classes[label] if run.classes and label < len(run.classes) else f"class {label}"


# --- the table -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Disease:
    """What may be found.

    Args:
        needs: the evidence without which it cannot be judged.
    """

    name: str
    needs: tuple[str, ...]
    check: Callable[[Evidence], Optional[Finding]]


DISEASES = (
    Disease("diverging", ("losses",), diverging),
    Disease("loss rising", ("losses",), rising),
    Disease("plateau", ("losses", "rates"), plateau),
    Disease("learning rate too high", ("losses", "rates"), rate_too_high),
    Disease("learning rate too low", ("losses", "rates"), rate_too_low),
    Disease("overfitting", ("evaluations",), overfitting),
    Disease("underfitting", ("evaluations",), underfitting),
    Disease("dead units", ("examination",), dead_units),
    Disease("exploding gradients", ("norms",), exploding_gradients),
    Disease("vanishing gradients", ("layers",), vanishing_gradients),
    Disease("batch-norm statistics off", ("examination",), statistics_off),
    Disease("label noise", ("examination",), label_noise),
    Disease("class imbalance", ("counts",), class_imbalance),
    Disease("data loader starving", ("waiting",), starving),
)
