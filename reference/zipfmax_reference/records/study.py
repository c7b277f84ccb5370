"""The study: what each output layer costs in quality and saves in time, trained on one text."""

from __future__ import annotations

from typing import ClassVar, Literal

from zipfmax_reference.records.base import Part, Real, Record


class StudyText(Record):
    """The text that a study trains on: a line of `study_texts.jsonl`."""

    FILE: ClassVar[str] = "study_texts"
    KEY: ClassVar[tuple[str, ...]] = ("checksum",)

    tokens: str
    """Where it is from, such as tokens:site-packages."""
    kind: str
    """What its tokens are: code (identifiers, numbers and punctuation), words, or both, file by file."""
    split: str
    """How it is split into a part to train on and one to validate on."""
    n_files: int
    n_valid_files: int
    """Files that the validation part is from."""
    n_train: int
    """Tokens to train on."""
    n_valid: int
    """Tokens to validate on."""
    n_distinct: int
    """Different tokens of the training part."""
    n_classes: int
    """Vocabulary size V, <unk> among them."""
    min_count: int
    """Occurrences, in the training part, of the rarest word that is kept."""
    coverage: float
    """Share of the training part that is not <unk>."""
    valid_coverage: float
    """Share of the validation part that is not <unk>."""
    zipf_slope: float
    """Exponent of the law by which counts fall, between ranks 100 and 50,000."""
    checksum: str
    """SHA-256 of the counts and of all ids."""
    read_s: float
    """Seconds that reading and encoding took."""
    processes: int = 1
    """Processes that read."""


class StudyLayer(Record):
    """One output layer in one study, and its cost: a line of `study_layers.jsonl`. Times in seconds.

    Its steps take turns with steps of the same model without an output layer, whose loss is the mean square of
    the hidden states; both are whole: forward, backward, clipping and update.
    """

    FILE: ClassVar[str] = "study_layers"
    KEY: ClassVar[tuple[str, ...]] = ("layer",)

    layer: str
    """Its name, as `--layers` takes it."""
    status: Literal["ok", "skipped", "failed"] = "ok"
    reason: str | None = None
    """Why it is not "ok"."""
    computes: str = ""
    """What computes the loss: an implementation and its settings."""
    exact: bool = True
    """Whether its gradients are those of its loss, up to rounding."""
    cutoffs: list[int] = []
    """First class of each tail; empty for full softmax."""
    projection_sizes: list[int] = []
    """Width of each tail's projection."""
    parameters: int = 0
    """Weights of the output layer; 0 where it shares the input's."""
    model_parameters: int = 0
    """Weights of the whole model."""
    n_classes: int
    in_features: int
    rows: int
    """Labels of a step, N."""
    trunk: str
    """What lies below, such as "transformer, 4 layers, d 512"."""
    inputs: str = "plain"
    """plain, adaptive or tied."""
    trunk_flops: int = 0
    """Floating point operations of the trunk's forward pass per label."""
    device: str = "cpu"
    dtype: str = "float32"
    """Of the matrix products; weights are float32."""
    step_s: float | None = None
    """Median whole step."""
    bare_step_s: float | None = None
    """Median step of the model without an output layer."""
    step_samples_s: list[float] = []
    bare_samples_s: list[float] = []
    """Samples of the two, in pairs that were taken one after the other."""
    output_share: float | None = None
    """(step_s - bare_step_s) / step_s."""
    temporary_bytes: int | None = None
    """On a CPU, the most that a step held for a time, beyond weights, gradients and the optimizer's state."""


class StudyPoint(Record):
    """Validation loss at one moment of one training run: a line of `study_points.jsonl`."""

    FILE: ClassVar[str] = "study_points"
    KEY: ClassVar[tuple[str, ...]] = ("layer", "seed", "step")

    layer: str
    seed: int
    step: int
    """Steps taken."""
    seconds: float
    """Time spent in them; evaluation, compiling and checkpoints do not count."""
    train_loss: Real | None = None
    """Mean loss of the steps since the point before, nats a token, as the layer computes it."""
    valid_loss: Real
    """Mean loss over the validation sample, nats a token, by exact log-probabilities."""
    band_losses: list[Real | None] = []
    """Its mean in each of the run's `bands`."""


class StudyBand(Part):
    """The classes from rank `start` up to but not including `stop`."""

    start: int
    stop: int
    tokens: int
    """Tokens of the validation sample in the band."""
    loss: Real | None = None
    """Their mean loss, nats; null where there are none."""
    gradient_error: Real | None = None
    """Relative error, in norm, of the gradient of the band's own weights at the end of training, on a batch of
    validation text, against the same function in wider arithmetic; null where that has none."""


class StudyRun(Record):
    """One finished training run: a line of `study_runs.jsonl`."""

    FILE: ClassVar[str] = "study_runs"
    KEY: ClassVar[tuple[str, ...]] = ("layer", "seed")

    layer: str
    seed: int
    status: Literal["ok", "failed"] = "ok"
    reason: str | None = None
    n_steps: int = 0
    seconds: float = 0.0
    """As in the points."""
    warm_up_s: float = 0.0
    """Untimed steps before the first: compiling, tuning."""
    tokens_per_s: float = 0.0
    """Tokens trained on a second."""
    peak_bytes: int | None = None
    """On a GPU, the most memory allocated during a training step, weights and the text included."""
    valid_loss: Real | None = None
    """Of the last point."""
    bands: list[StudyBand] = []
    """The last point's loss by rank: cut at powers of ten and at every cutoff of the study's layers, so that
    both decades of frequency and clusters are sums of bands."""


class StudyMap(Record):
    """Times of output layers and of the input embedding at one shape: a line of `study_map.jsonl`, in seconds.

    Each is forward, backward, clipping and the optimizer's update of its own weights. A whole step follows: with
    a trunk that takes t seconds, the speedup is (t + inputs_s + full_s) / (t + inputs_s + adaptive_s).
    """

    FILE: ClassVar[str] = "study_map"
    KEY: ClassVar[tuple[str, ...]] = ("device", "dtype", "n_classes", "in_features", "rows")

    device: str
    dtype: str
    n_classes: int
    in_features: int
    rows: int
    """Labels of a step, N, drawn by Zipf's law with exponent 1."""
    cutoffs: list[int]
    full_s: float | None = None
    """Median of the fastest exact full softmax; null where none ran."""
    full_computes: str = ""
    """Which that was, with its settings, or why none ran."""
    adaptive_s: float | None = None
    """Median of zipfmax."""
    inputs_s: float | None = None
    """Median of a plain embedding [V, d]."""
    full_samples_s: list[float] = []
    adaptive_samples_s: list[float] = []
    inputs_samples_s: list[float] = []


class StudyTrunk(Record):
    """Time of a trunk by itself: a line of `study_trunks.jsonl`. Forward, backward, clipping and update."""

    FILE: ClassVar[str] = "study_trunks"
    KEY: ClassVar[tuple[str, ...]] = ("device", "dtype", "trunk", "depth", "in_features", "rows")

    device: str
    dtype: str
    trunk: str
    """transformer or lstm."""
    depth: int
    """Its layers."""
    in_features: int
    rows: int
    flops: int
    """Floating point operations of its forward pass per label."""
    step_s: float
    """Median."""
    samples_s: list[float] = []
