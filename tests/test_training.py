"""The training loop: what it sees, what it keeps, that it goes on from anywhere."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinygrad_nnfs.models import augmentation, networks
from tinygrad_nnfs.models.evaluation import evaluate
from tinygrad_nnfs.models.mlp import MLP
from tinygrad_nnfs.models.recipes import RECIPES, Recipe
from tinygrad_nnfs.models.training import MIXTURES, Training, TrainingError

from tinygrad_nnfs import checkpoint, get_rng_state, nn
from tinygrad_nnfs.backend import restart_keys
from tinygrad_nnfs.data import load, scale
from tinygrad_nnfs.ops import softmax_cross_entropy

DIGITS = load("digits")
SMALL = Recipe(batch_size=16, epochs=2)


def training(recipe=SMALL, count=40, seed=0, **options):
    return Training(
        recipe, DIGITS.train_images[:count], DIGITS.train_labels[:count], seed=seed, **options
    )


def held_out(count=60):
    return DIGITS.test_images[:count], DIGITS.test_labels[:count]


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_every_epoch_sees_every_image_once(monkeypatch):
    seen = []
    learn = Training.learn

    def noted(self, chosen):
        seen.append(chosen)
        learn(self, chosen)

    monkeypatch.setattr(Training, "learn", noted)
    steps = list(training().steps())
    assert [(s.epoch, s.step, s.samples, s.end_of_epoch) for s in steps] == [
        *((1, 1, 16, False), (1, 2, 32, False), (1, 3, 40, True)),
        *((2, 4, 16, False), (2, 5, 32, False), (2, 6, 40, True)),
    ]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    assert sorted(first) == sorted(second) == list(range(40))
    assert (first != second).any()


def test_the_same_seed_trains_the_same_network():
    recipe = replace(SMALL, shift=1, mirror=True, erase=0.5, epochs=3)
    weights = []
    for seed in (1, 1, 2):
        run = training(recipe, seed=seed)
        list(run.steps())
        weights.append(run.network.state_dict())
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_networks_learn_a_few_digits_by_heart(network):
    recipe = replace(SMALL, network=network, epochs=50)
    run = training(recipe, seed=1)
    losses = [step.loss for step in run.steps() if step.end_of_epoch]
    assert losses[-1] < losses[0] / 4
    assert evaluate(run.network, run.images, run.labels)[1] == 1


def test_mlp_reaches_96_percent_of_the_digits():
    run = training(Recipe(epochs=30), count=None)
    list(run.steps())
    assert evaluate(run.network, DIGITS.test_images, DIGITS.test_labels)[1] >= 0.96


EVERYTHING = replace(
    SMALL,
    lr=0.2,
    epochs=8,
    schedule="one-cycle",
    weight_decay=0.01,
    label_smoothing=0.1,
    shift=2,
    mirror=True,
    erase=0.5,
    average=0.9,
    clip=1.0,
    patience=2,
    validation=60,
)


MAX_STEPS = replace(EVERYTHING, patience=0, max_steps=17)
ADAMW = replace(MAX_STEPS, optimizer="adamw", lr=0.002, weight_decay=0.5)


@pytest.mark.parametrize("recipe", [EVERYTHING, MAX_STEPS, ADAMW])
@given(data=st.data())
def test_training_goes_on_from_any_step_to_the_same_bits(recipe, data):
    whole = training(recipe, validation=held_out())
    steps_of_whole = [vars(step) for step in whole.steps()]
    assert 8 < len(steps_of_whole) < 24  # it stops early, and has begun to average
    stop = data.draw(st.integers(0, len(steps_of_whole)))
    begun = training(recipe, validation=held_out())
    steps = begun.steps()
    for _ in range(stop):
        next(steps)
    arrays, text = begun.state()
    gone_on = training(recipe, validation=held_out())
    gone_on.network.load_state_dict(  # whatever was there before
        {name: array + 1 for name, array in gone_on.network.state_dict().items()}
    )
    gone_on.restore(arrays, text)
    assert [vars(step) for step in gone_on.steps()] == steps_of_whole[stop:]
    for run in (whole, gone_on):
        run.finish()
    assert same(whole.state()[0], gone_on.state()[0])
    assert whole.state()[1] == gone_on.state()[1]


def test_trainings_in_turns_do_not_disturb_each_other():
    alone = training()
    list(alone.steps())
    together = [training(), training(seed=5)]
    for _ in zip(*(run.steps() for run in together)):
        pass
    assert same(alone.network.state_dict(), together[0].network.state_dict())


def test_random_streams_are_distinct():
    run = training()
    numbers = [np.random.default_rng(0), *(run.random(p, i) for p in (1, 2) for i in (0, 1))]
    assert len({generator.integers(2**63) for generator in numbers}) == 5


def test_a_state_of_another_training_is_refused():
    arrays, text = training().state()
    for other in (training(replace(SMALL, lr=0.1)), training(seed=1)):
        with pytest.raises(ValueError, match="another recipe or seed"):
            other.restore(arrays, text)


def stopped(run):
    """The message of a training whose loss does not stay finite."""
    with np.errstate(all="ignore"), pytest.raises(TrainingError) as error:
        list(run.steps())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@given(exponent=st.integers(2, 30), seed=st.integers(0, 9))
@settings(max_examples=5)
def test_loss_that_is_not_finite_stops_at_that_step_and_names_the_op(network, exponent, seed):
    """Oracle: the same batch again, layer by layer."""
    recipe = replace(SMALL, network=network, lr=10.0**exponent, epochs=20, shift=1)
    run, chosen = training(recipe, seed=seed), []
    learn = run.learn
    run.learn = lambda batch: (chosen.append(batch), learn(batch))
    message = stopped(run)
    place = f"in epoch {run.at.epoch + 1}, step {run.at.step + 1}: "
    restart_keys(seed, run.at.step)
    x = scale(run.augmented(run.images[chosen[-1]]))
    with np.errstate(all="ignore"):
        for i, layer in enumerate(run.network):  # noqa: B007
            x = layer(x)
            if not np.isfinite(getattr(x, "data", x)).all():
                break
        else:
            layer = None  # the logits are finite, only the loss of them is not
    name, kind = type(run.network).__name__, type(layer).__name__
    op = {"Linear": "linear", "Conv2d": "conv2d", "LeakyReLU": "leaky_relu", "Dropout": "dropout"}
    made_by = f"{op.get(kind)} in {name}, layer {i} ({kind})," if layer else "softmax_cross_entropy"
    assert f"{place}{made_by} made " in message
    assert message.endswith(f" finite inputs: try a smaller learning rate than {recipe.lr:g}")


def test_the_search_for_the_fault_changes_nothing(monkeypatch):
    seen = []
    fault = Training.fault

    def watched(self, images, chosen):
        state = [self.network.state_dict(), get_rng_state()]
        seen.append((state, fault(self, images, chosen), self.network.state_dict()))
        assert get_rng_state() == state[1]
        return "(the fault)"

    monkeypatch.setattr(Training, "fault", watched)
    assert "(the fault)" in stopped(training(replace(SMALL, lr=1e30, epochs=3)))
    (((weights, _), message, weights_after),) = seen
    assert "made" in message
    assert same(weights, weights_after)


def test_parameters_that_the_step_before_has_spoilt_are_named():
    run = training(replace(SMALL, lr=1e10, weight_decay=1e30))
    assert re.search(
        r"the loss is nan in epoch 1, step 2: the step before made [^:]*Inf in parameter 7.weight "
        r"and 2 more \(its gradient: float32 \(10, 64\), [^:]*\): try a smaller",
        stopped(run),
    )


def test_a_gradient_that_is_not_finite_while_the_loss_is_shows_in_the_next_step():
    run = training()
    run.network[4].register_forward_hook(lambda module, inputs, y: y + (y * 0).sqrt())
    message = stopped(run)
    assert "in epoch 1, step 2: the step before made 64 NaN in parameter 4.bias" in message
    assert "and 3 more (its gradient: float32 (64,), no finite element, 64 NaN)" in message


def test_parameters_that_were_never_finite_are_named():
    run = training()
    run.network[1].bias.data[3] = np.nan
    assert "in epoch 1, step 1: 1 NaN in parameter 1.bias: try" in stopped(run)


def test_the_learning_rate_follows_the_schedule_step_by_step():
    recipe = replace(SMALL, schedule="one-cycle", epochs=4)
    rates = [step.lr for step in training(recipe).steps()]
    assert rates == [recipe.learning_rate(i / 3) for i in range(12)]
    assert len(set(rates)) == 12


def test_early_stopping_restores_the_best_weights():
    recipe = replace(SMALL, lr=0.05, epochs=50, patience=2, validation=60)
    run = training(recipe, validation=held_out())
    measured = [s.validation_accuracy for s in run.steps() if s.end_of_epoch]
    best = int(np.argmax(measured))
    assert run.at.stopped == f"no better epoch than {best + 1} in 2"
    assert len(measured) == best + 3
    run.finish()
    assert evaluate(run.network, *held_out())[1] == max(measured)


def test_of_equal_epochs_the_first_is_the_best():
    run = training(
        replace(SMALL, lr=0.0, epochs=9, patience=3, validation=60), validation=held_out()
    )
    list(run.steps())
    assert (run.at.best_epoch, run.at.epoch) == (1, 4)


def test_max_steps_and_target_accuracy_stop():
    run = training(replace(SMALL, max_steps=4))
    assert len(list(run.steps())) == 4
    assert run.at.stopped == "4 steps done"
    run = training(replace(SMALL, epochs=100, target_accuracy=0.9))
    *_, last = run.steps()
    assert last.accuracy >= 0.9
    assert last.epoch < 100
    assert run.at.stopped == f"accuracy {last.accuracy:.2%} reached"


def test_target_accuracy_is_the_validations_where_there_is_one():
    recipe = replace(SMALL, epochs=100, target_accuracy=0.75, validation=60)
    *_, last = training(recipe, validation=held_out()).steps()
    assert last.validation_accuracy >= 0.75
    wrong = DIGITS.test_images[:60], (DIGITS.test_labels[:60] + 1) % 10
    run = training(replace(recipe, epochs=20), validation=wrong)
    assert [step for step in run.steps() if step.end_of_epoch][-1].epoch == 20


def test_clipping_limits_the_gradients_that_are_applied():
    free, clipped = training(), training(replace(SMALL, clip=1e-3))
    before = free.network.state_dict()
    for run in (free, clipped):
        next(run.steps())
    moved = [
        np.sqrt(sum(((run.network.state_dict()[n] - before[n]) ** 2).sum() for n in before))
        for run in (free, clipped)
    ]
    assert moved[1] == pytest.approx(1e-3 * SMALL.lr, rel=1e-3)
    assert moved[0] > 10 * moved[1]


def test_weight_decay_shrinks_weights_and_leaves_biases():
    recipe = replace(SMALL, dropout=False)
    free, decayed = training(recipe), training(replace(recipe, weight_decay=0.5))
    before = free.network.state_dict()
    for run in (free, decayed):
        next(run.steps())
    for name, weights in before.items():
        expected = free.network.state_dict()[name]
        if name.endswith("weight"):
            expected = expected - SMALL.lr * 0.5 * weights
        np.testing.assert_allclose(decayed.network.state_dict()[name], expected, atol=1e-7)


def test_label_smoothing_is_in_the_loss():
    first = next(training(replace(SMALL, label_smoothing=0.5)).steps())
    run = training()
    chosen = run.random(1, 0).permutation(40)[:16]
    run.network.train()
    restart_keys(0, 0)
    logits = run.network(scale(run.images[chosen]))
    loss = softmax_cross_entropy(logits, run.labels[chosen], label_smoothing=0.5)
    assert first.loss == loss.item()


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """An MLP for the digits that the package comes with, as "teacher"; "none" is not there."""
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    network = MLP().eval()
    text = {"format": checkpoint.MODEL_FORMAT, "data": "digits"}
    checkpoint.save(tmp_path / "teacher.safetensors", network.state_dict(), text)
    monkeypatch.setattr(
        Recipe.__dataclass_fields__["teacher"], "metadata", {"choices": ("", "teacher", "none")}
    )
    return network


def judged(teacher, images):
    """Softmax of the teacher's logits, in float64."""
    logits = teacher(scale(images)).numpy().astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_teacher_judges_every_mixture_in_turn(teacher):
    recipe = replace(SMALL, teacher="teacher", mixup=0.5, mirror=True, epochs=MIXTURES + 2)
    run, shown, learnt = training(recipe, seed=3), [], []
    run.augmented = lambda images: learnt.extend(images) or images
    for step in run.steps():
        if step.end_of_epoch:
            shown.append(run.shown)
            assert sorted(x.tobytes() for x in learnt) == sorted(x.tobytes() for x in run.shown)
            learnt.clear()
            both = judged(teacher, run.shown) + judged(teacher, run.shown[:, :, ::-1])
            np.testing.assert_allclose(run.targets, both / 2, atol=1e-6)
    for i, images in enumerate(shown[:MIXTURES]):
        same_as = [j for j, other in enumerate(shown) if np.array_equal(images, other)]
        assert same_as == list(range(i, len(shown), MIXTURES))
    mixed = [(images != run.images).any(axis=(1, 2)) for images in shown[:MIXTURES]]
    assert 0.3 < np.mean(mixed) < 0.6


def test_a_training_with_mixtures_goes_on_to_the_same_bits(teacher):
    recipe = replace(SMALL, teacher="teacher", mixup=0.5, dropout_until=0.5, epochs=3)
    whole = training(recipe)
    losses = [step.loss for step in whole.steps()]
    for stop in range(len(losses)):
        begun = training(recipe)
        steps = begun.steps()
        for _ in range(stop):
            next(steps)
        gone_on = training(recipe)
        gone_on.restore(*begun.state())
        assert [step.loss for step in gone_on.steps()] == losses[stop:]
        assert same(whole.state()[0], gone_on.state()[0])


def test_an_interruption_while_a_teacher_judges_changes_nothing(teacher, monkeypatch):
    monkeypatch.setattr("tinygrad_nnfs.models.training.JUDGED", 8)
    recipe = replace(SMALL, teacher="teacher", mixup=0.5, epochs=3)
    whole = training(recipe)
    losses = [step.loss for step in whole.steps()]
    for asked in range(1, 15):
        run, answers = training(recipe), iter([False] * asked + [True] + [False] * 100)
        run.interrupted = lambda answers=answers: next(answers)
        found = [step.loss for step in run.steps()]
        assert len(found) < len(losses)  # it has stopped, at the beginning of an epoch
        gone_on = training(recipe)
        gone_on.restore(*run.state())
        assert found + [step.loss for step in gone_on.steps()] == losses
        assert same(whole.state()[0], gone_on.state()[0])


def test_a_teachers_probabilities_are_the_targets(teacher):
    targets = judged(teacher, DIGITS.train_images[:40])
    recipe = replace(SMALL, teacher="teacher", dropout=False, batch_size=40)
    run = training(recipe)
    pupil = run.network.eval()(scale(run.images)).numpy().astype(np.float64)
    log_softmax = pupil - np.log(np.exp(pupil).sum(axis=1, keepdims=True))
    expected = -(targets * log_softmax).sum(axis=1).mean()
    assert next(run.steps()).loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(checkpoint.CheckpointError, match="no model 'none' comes with"):
        training(replace(SMALL, teacher="none"))
    with pytest.raises(TrainingError, match="the teacher teacher knows digits, not mnist"):
        training(replace(SMALL, teacher="teacher", data="mnist"))


def test_average_is_what_is_used():
    recipe = replace(SMALL, epochs=8, average=0.5)
    run = training(recipe)
    list(run.steps())
    last = run.network.state_dict()
    run.finish()
    assert not same(last, run.network.state_dict())
    expected = {str(i): p.numpy() for i, p in enumerate(run.network.parameters())}
    averages = run.average.state_dict()
    assert averages.pop("t") == 24 // 8
    assert same(expected, averages)


def test_averages_count_from_their_first_update_on():
    few = training(replace(SMALL, average=0.9, max_steps=5))
    list(few.steps())
    last = few.network.state_dict()
    few.finish()
    assert same(last, few.network.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "rnn"}, "network must be one of mlp, cnn, found 'rnn'"),
        ({"epochs": 0}, "epochs must be an integer >= 1, found 0"),
        ({"epochs": 1.5}, "epochs must be an integer >= 1, found 1.5"),
        ({"epochs": True}, "epochs must be an integer >= 1, found True"),
        ({"dropout": 1}, "dropout must be true or false, found 1"),
        ({"lr": "0.1"}, "lr must be a number >= 0, found '0.1'"),
        ({"lr": float("nan")}, "lr must be a number >= 0, found nan"),
        ({"momentum": 1}, "momentum must be a number >= 0 and < 1, found 1"),
        ({"warmup": 0.0}, "warmup must be a number > 0 and < 1, found 0.0"),
        ({"patience": 1}, "patience needs validation"),
        ({"mixup": 0.5}, "mixup needs a teacher"),
        ({"teacher": "cnn-fashion-mnist", "label_smoothing": 0.1}, "targets are smooth"),
        ({"teacher": "cnn-fashion-mnist", "split": "resplit"}, "standard split"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def dropout_by_epoch(recipe):
    run = training(recipe)
    layers = [layer for layer in run.network if isinstance(layer, nn.Dropout)]
    return [[layer.p for layer in layers] for step in run.steps() if step.end_of_epoch]


def test_dropout_can_be_switched_off_at_once_or_later():
    assert dropout_by_epoch(replace(SMALL, dropout=False)) == [[0, 0]] * 2
    assert dropout_by_epoch(SMALL) == [[0.2, 0.2]] * 2
    recipe = replace(SMALL, epochs=5, dropout_until=0.5)
    assert dropout_by_epoch(recipe) == [[0.2, 0.2]] * 3 + [[0, 0]] * 2
    assert dropout_by_epoch(replace(recipe, dropout_until=0.0)) == [[0, 0]] * 5


# -- augmentation ----------------------------------------------------------------------------------

IMAGES = DIGITS.train_images[:50]


@given(st.integers(0, 5), st.integers(0, 99))
def test_shifted_images_are_moved_images(pixels, seed):
    shifted = augmentation.shift(IMAGES, pixels, np.random.default_rng(seed))
    assert (shifted.shape, shifted.dtype) == (IMAGES.shape, np.uint8)
    padded = np.pad(IMAGES, ((0, 0), (pixels, pixels), (pixels, pixels)))
    for image, moved in zip(padded, shifted):
        places = range(2 * pixels + 1)
        assert any((image[y : y + 28, x : x + 28] == moved).all() for y in places for x in places)


@given(st.integers(0, 99))
def test_mirrored_images_are_mirrored_or_not(seed):
    mirrored = augmentation.mirror(IMAGES, np.random.default_rng(seed))
    as_they_were = (mirrored == IMAGES).all(axis=(1, 2))
    turned = (mirrored == IMAGES[:, :, ::-1]).all(axis=(1, 2))
    assert (as_they_were | turned).all()
    assert 5 < as_they_were.sum() < 45


@given(st.floats(0, 1), st.integers(0, 99))
def test_mixed_images_lie_on_the_way_to_another(share, seed):
    black_and_white = np.repeat(np.array([0, 255], np.uint8), 25)[:, None, None]
    images = np.broadcast_to(black_and_white, (50, 28, 28))
    mixed = augmentation.mix(images, share, np.random.default_rng(seed))
    assert (mixed.shape, mixed.dtype) == (images.shape, np.uint8)
    assert (mixed == mixed[:, :1, :1]).all()
    way = abs(mixed[:, 0, 0].astype(int) - images[:, 0, 0]) / 255
    assert way.max() <= share + 0.5 / 255
    assert (way == 0).sum() >= 10


@given(st.integers(0, 99))
def test_erased_images_have_one_rectangle_of_noise(seed):
    random = np.random.default_rng(seed)
    white = np.full((50, 28, 28), 255, np.uint8)
    assert (augmentation.erase(white, 0.0, random) == white).all()
    for image in augmentation.erase(white, 1.0, random):
        rows, columns = np.nonzero(image != 255)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert max(height, width) <= 12
        # a 256th of the noise is white, too
        assert len(rows) > 0.8 * height * width


# -- recipes ---------------------------------------------------------------------------------------


def test_the_source_has_eleven_recipes_and_each_figure_one_of_ours_to_beat_it():
    ours = [name for name in RECIPES if name.endswith("-plus")]
    source = [name for name in RECIPES if name not in ours]
    assert len(source) == 11
    for name in source:
        recipe = RECIPES[name]
        if recipe.batch_size == 1:
            assert (recipe.lr, recipe.momentum) in ((0.001, 0.0), (0.001, 0.9))
        else:
            plus = RECIPES[f"{name}-plus"]
            same = ("network", "data", "dropout")
            assert [getattr(plus, n) for n in same] == [getattr(recipe, n) for n in same]


def test_learning_rates():
    source = RECIPES["fashion-dropout-l2"]
    assert source.learning_rate(0.9) == 0.01
    assert source.learning_rate(3.5) == 0.01 / (1 + 0.0005 * 3)
    assert source.weight_decay * 64 == 0.001
    assert RECIPES["mnist-minibatch"].learning_rate(50) == 0.001
    plus = replace(SMALL, schedule="one-cycle", lr=1.0, epochs=10, warmup=0.2)
    assert plus.learning_rate(2) == 1
    assert plus.learning_rate(10) < 1e-5
    cosine = replace(SMALL, schedule="cosine", lr=1.0, epochs=10)
    assert [cosine.learning_rate(t) for t in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
