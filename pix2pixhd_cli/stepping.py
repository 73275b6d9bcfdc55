"""One step of training: at once where it can be, else in turns, on several replicas, and with a scaled loss."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import tensorflow as tf

from pix2pixhd_cli.model.build import Optimizers
from pix2pixhd_cli.model.optimizers import NO_NUMBER, LossScale
from pix2pixhd_cli.model.pix2pixhd import Batch, Gradients, Losses, Pix2PixHD, sum_of_squares

PACK = 16 << 20  # Bytes sent to other workers at a time: in one piece they would be copied as a whole several times.


class Portion(NamedTuple):
    """What one replica sees in one turn, and its share of the step's examples; a share of 0 counts for nothing."""

    batch: Batch
    share: float


class Stepper:
    """Trains a model step by step, wherever its variables lie.

    Each step's losses and gradients are the means over all its examples: portions count by their shares, and sums are made
    over turns and replicas before anything is updated.

    Args:
        model, optimizers, scale: what is trained and updated, made under `strategy`.
        strategy: the replicas.
        turns: portions a replica sees in a step.
        spec: what a batch looks like, where it is trained on at once; None stands for a number that may change.
    """

    def __init__(
        self,
        model: Pix2PixHD,
        optimizers: Optimizers,
        scale: LossScale | None,
        strategy: tf.distribute.Strategy,
        *,
        turns: int,
        spec: Batch,
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.scale = scale
        self.strategy = strategy
        self.turns = turns
        self._spec = spec
        self._sums: dict[int, tf.Variable] = {}
        self._losses: list[tf.Variable] = []
        self._at_once = [tf.function(partial(self._whole, fixed), input_signature=[spec]) for fixed in (False, True)]
        self._in_one_turn = [tf.function(partial(self._one_turn, fixed)) for fixed in (False, True)]
        self._add = [tf.function(partial(self._one_of_many, fixed)) for fixed in (False, True)]
        self._finish = [tf.function(partial(self._after_all, fixed)) for fixed in (False, True)]
        if turns > 1:
            self._make_sums()

    def __call__(self, turns: Sequence[Sequence[Portion]], *, fixed_global: bool) -> Losses:
        """Train on a step's portions, by turn and by replica; returns the losses before the update.

        Raises `tf.errors.InvalidArgumentError`, having updated nothing, if losses or gradients are no numbers.
        """
        if self._is_one_go(self.turns):
            return self._at_once[fixed_global](turns[0][0].batch)
        values = [self._on_replicas(portions) for portions in turns]
        if self.turns == 1:
            return self._in_one_turn[fixed_global](*values[0])
        for batch, share in values:
            self._add[fixed_global](batch, share)
        return self._finish[fixed_global]()

    def losses(self, portions: Sequence[Portion]) -> list[Losses]:
        """The losses of a turn's portions, each by itself; nothing is trained on them."""
        batch, _ = self._on_replicas(portions)
        found = tf.function(lambda batch: self.strategy.run(self.model.losses, (batch,)))(batch)
        values = [self.strategy.experimental_local_results(loss) for loss in found]
        return [Losses(*of_one) for of_one in zip(*values, strict=True)]

    def trace(self, spec: Batch, turns: int, *, recompute: bool) -> tf.Graph:
        """The graph of what one replica does at a time of a step of so many turns, for batches of known sizes."""
        if self._is_one_go(turns) and spec == self._spec and recompute == self.model.recompute:
            return self._at_once[False].get_concrete_function().graph  # What is trained with: traced once.
        work: Callable[..., object] = partial(self._gradients, False, share=tf.constant(1.0))
        if self._is_one_go(turns):
            work = partial(self._whole, False)
        elif turns > 1 and turns == self.turns and self.strategy.num_replicas_in_sync == 1:
            work = partial(self._one_of_many, False, share=tf.constant(1.0))
        with self.model.recomputing(recompute):
            return tf.function(work).get_concrete_function(spec).graph

    def _is_one_go(self, turns: int) -> bool:
        """Whether gradients need not be kept until a step's last one is there."""
        return turns == 1 and self.scale is None and self.strategy.num_replicas_in_sync == 1

    def _on_replicas(self, portions: Sequence[Portion]) -> tuple[Batch, tf.Tensor]:
        """A turn's portions as values of the replicas here."""
        pairs = iter([(portion.batch, tf.constant(portion.share)) for portion in portions])
        if self.strategy.num_replicas_in_sync == 1:
            return next(pairs)
        return self.strategy.experimental_distribute_values_from_function(lambda _: next(pairs))

    def _whole(self, fixed: bool, batch: Batch) -> Losses:
        generator, discriminator, outermost = self.optimizers
        optimizer = outermost if fixed else generator
        return self.model.train_step(batch, optimizer, discriminator, fixed_global=fixed)

    def _one_turn(self, fixed: bool, batch: Batch, share: tf.Tensor) -> Losses:
        return self._update(fixed, partial(self._gradients, fixed), batch, share)

    def _one_of_many(self, fixed: bool, batch: Batch, share: tf.Tensor) -> None:
        def add(batch: Batch, share: tf.Tensor) -> None:
            found = self._gradients(fixed, batch, share)
            for total, value in zip(self._totals(fixed), tf.nest.flatten(found), strict=True):
                total.assign_add(value)

        self.strategy.run(add, (batch, share))

    def _after_all(self, fixed: bool) -> Losses:
        def take() -> Gradients:
            totals = self._totals(fixed)
            values = [total.read_value() for total in totals]
            with tf.control_dependencies(values):
                for total in totals:
                    total.assign(tf.zeros_like(total))
            split = len(values) - len(self.model.discriminator_variables)
            count = len(Losses._fields)
            return Gradients(Losses(*values[:count]), values[count:split], values[split:])

        return self._update(fixed, take)

    def _gradients(self, fixed: bool, batch: Batch, share: tf.Tensor) -> Gradients:
        """A portion's part of the step's losses and gradients."""
        factor = share if self.scale is None else share * self.scale.value
        found = self.model.gradients(batch, factor, fixed_global=fixed)
        return found._replace(losses=Losses(*(share * loss for loss in found.losses)))

    def _update(self, fixed: bool, compute: Callable[..., Gradients], *arguments: Any) -> Losses:
        """Compute on all replicas, sum over them, check, and update everything alike."""

        def summed(*arguments: Any) -> tuple[Gradients, tf.Tensor]:
            found = sum_over_replicas(compute(*arguments))
            return self._checked(found)

        found, finite = self.strategy.run(summed, arguments)
        losses, finite = Losses(*map(self._here, found.losses)), self._here(finite)

        def apply() -> None:
            self.strategy.run(partial(self._apply, fixed), (found,))

        if self.scale is None:
            apply()
        else:
            tf.cond(finite, apply, lambda: None)
            self.scale.follow(finite)
        return losses

    def _checked(self, found: Gradients) -> tuple[Gradients, tf.Tensor]:
        """The same once the losses are known to be numbers, and whether the gradients are; without a scale they must be."""
        squares = sum_of_squares([*found.generator, *found.discriminator])
        finite = tf.math.is_finite(squares)
        checked = tf.add_n(found.losses) + (squares if self.scale is None else 0.0)
        with tf.control_dependencies([tf.debugging.check_numerics(checked, NO_NUMBER)]):
            return tf.nest.map_structure(tf.identity, found), finite

    def _apply(self, fixed: bool, found: Gradients) -> None:
        """Update G (with E) and D on one replica by gradients that are the same on all."""
        generator, discriminator, outermost = self.optimizers
        pairs = (
            (outermost if fixed else generator, found.generator, self.model.trained_variables(fixed)),
            (discriminator, found.discriminator, self.model.discriminator_variables),
        )
        with tf.control_dependencies(
            found.discriminator
        ):  # Nothing moves, nor counts, before all is known to be numbers.
            for optimizer, gradients, variables in pairs:
                assert optimizer is not None
                if self.scale is not None:
                    gradients = [gradient / self.scale.value for gradient in gradients]
                optimizer.apply(gradients, variables)
            if self.model.average is not None:
                self.model.average.follow()

    def _here(self, value: tf.Tensor) -> tf.Tensor:
        """One of several replicas' equal values."""
        return self.strategy.experimental_local_results(value)[0]

    def _make_sums(self) -> None:
        """Room for each replica's sums over turns."""
        with self.strategy.scope():
            make = partial(
                tf.Variable,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            self._losses = [make(0.0) for _ in Losses._fields]
            for variable in (*self.model.generator_variables, *self.model.discriminator_variables):
                self._sums[id(variable)] = make(tf.zeros(variable.shape))

    def _totals(self, fixed: bool) -> list[tf.Variable]:
        """The sums of losses and of gradients, in the order of `Gradients`."""
        variables = (*self.model.trained_variables(fixed), *self.model.discriminator_variables)
        return [*self._losses, *(self._sums[id(variable)] for variable in variables)]


def sum_over_replicas(found: Gradients) -> Gradients:
    """Every tensor's sum over all replicas, on each of them."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return found
    flat = [tf.identity(tensor) for tensor in tf.nest.flatten(found)]
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=PACK)
    flat = context.all_reduce(tf.distribute.ReduceOp.SUM, flat, options)
    summed: Gradients = tf.nest.pack_sequence_as(found, flat)
    return summed
