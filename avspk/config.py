"""One strict tree of settings: YAML with `inherit`, `key.path=value` overrides, errors that name the nearest key.

Dictionaries with free keys (`data.trials`) are inherited entry by entry: `name: null` removes one, `data.trials:
null` removes all of them, in a file and on the command line.

Tags: [S] stated by a source that was read, [I] inferred, [C] a choice of this project.
Defaults are the values for VoxCeleb2; the demo overrides them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from avspk.clusterers.joint_kmeans import JointKmeansSettings
from avspk.clusterers.metric import MetricSettings
from avspk.judges.gated_correction import GatedCorrectionSettings
from avspk.objectives.base import ViewPlan
from avspk.objectives.dino import DinoSettings
from avspk.objectives.sdpn import SdpnSettings
from avspk.settings import (
    ConfigError,
    Count,
    DefaultKind,
    NotNegative,
    Positive,
    PositiveRange,
    Probability,
    Range,
    Settings,
    ordered,
)
from avspk.text_files import read_text

Modality = Literal["audio", "face"]
ClusterSettings = Annotated[MetricSettings | JointKmeansSettings, Field(discriminator="kind"), DefaultKind("metric")]

# Prefixes of dotted keys, by what depends on them.
ALWAYS_FREE = ("training.", "evaluation.", "data.trials", "data.wav_root", "rounds")
"""They do not change what a stage learns. They may change at any time."""
FIRST_READ_BY = {
    "round1": ("audio.refine_seconds", "face.refine_policy", "cluster.num_clusters", "cluster.weights", "refine."),
    "large_margin": ("large_margin.",),
}
"""Stage folder -> settings that no earlier stage reads. They may change until the folder exists."""


JudgeSettings = Annotated[GatedCorrectionSettings, DefaultKind("gate_and_correction")]
ObjectiveSettings = Annotated[DinoSettings | SdpnSettings, Field(discriminator="kind"), DefaultKind("dino")]


class DataSettings(Settings):
    """Where the media is. Relative paths are relative to the working directory."""

    train: Path = Field(description="manifest of the training utterances")
    crops: Path | None = Field(None, description="face crop store; default: `crops` next to the manifest")
    noise: Path | None = Field(None, description="noise pack (`avspk noise`); none: one is generated in the run folder")
    noise_gigabytes: Positive = Field(
        18.0, description="at most this much noise is kept on the device; MUSAN and RIRS_NOISES take 16.4"
    )
    trials: dict[str, Path] = Field(
        default_factory=dict, description="name -> trial list; null removes an inherited one"
    )
    wav_root: Path | None = Field(None, description="folder that the names in the trial lists are relative to")


class AudioPolicy(Settings):
    """What is done to one audio crop.

    With `one_of` a view gets reverberation or noise or neither, never both; the two probabilities then sum to at most
    1. Each crop, with probability 1, gets reverberation or one of the additive noises [S]; without `one_of` they are
    independent [C]. SNR ranges in dB [S]. `voices` recordings of speech are summed to babble (range, inclusive).
    `category_weights` are relative chances of (noise, music, speech) [C]; those that a pack lacks get none.
    `equaliser_db`: standard deviation of a smooth random gain curve over `equaliser_points` frequencies, 0 = off [C].
    """

    reverberation: Probability = 0.5
    noise: Probability = 0.5
    one_of: bool = True
    noise_snr: Range = (0.0, 15.0)
    music_snr: Range = (5.0, 15.0)
    speech_snr: Range = (10.0, 30.0)
    voices: Annotated[tuple[Count, Count], AfterValidator(ordered)] = (3, 6)
    category_weights: tuple[NotNegative, NotNegative, NotNegative] = (1.0, 1.0, 1.0)
    equaliser_db: NotNegative = 0.0
    equaliser_points: int = Field(8, ge=2)

    @property
    def num_parts(self) -> int:
        """Largest number of recordings in one view's noise: the constant P of the drawn arrays."""
        return self.voices[1]

    @model_validator(mode="after")
    def _consistent(self) -> AudioPolicy:
        if self.one_of and self.reverberation + self.noise > 1 + 1e-9:
            raise ValueError(f"one_of needs reverberation + noise <= 1, got {self.reverberation} + {self.noise}")
        if max(self.category_weights) == 0:
            raise ValueError("one of category_weights must be positive")
        return self


class ImagePolicy(Settings):
    """What is done to one face crop; global and local views are two policies. All [C].

    `scale`: range of the crop's share of the image's area; `ratio`: range of width over height; `brightness`,
    `contrast`, `saturation` s: factors uniform in 1 - s .. 1 + s, drawn with probability `jitter`; `grey`, `blur`,
    `flip`: probabilities; `blur_sigma`: range in output pixels.
    """

    scale: PositiveRange = (0.4, 1.0)
    ratio: PositiveRange = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    grey: Probability = 0.2
    blur: Probability = 0.5
    blur_sigma: PositiveRange = (0.1, 2.0)

    @model_validator(mode="after")
    def _consistent(self) -> ImagePolicy:
        if self.scale[1] > 1:
            raise ValueError(f"scale is {self.scale}; it is a share of the area, at most 1")
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; valid: low <= 1 <= high")
        return self


class EncoderSettings(Settings):
    """What all encoders have."""

    embedding_norm: bool = Field(False, description="batch norm on the embedding; recipes differ [C]")


class EcapaSettings(EncoderSettings):
    """ECAPA-TDNN; the defaults are the c512 model of 6.19 M parameters [S]."""

    architecture: Literal["ecapa"] = "ecapa"
    channels: Count = 512
    aggregate_channels: Count = 1536
    scale: int = Field(8, ge=2)
    se_dim: Count = 128
    attention_dim: Count = 128
    embedding_dim: Count = 192


class AudioResNetSettings(EncoderSettings):
    """ResNet-34 on fbanks with statistics pooling, 6.63 M parameters [S]."""

    architecture: Literal["audio_resnet34"] = "audio_resnet34"
    width: Count = 32
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    embedding_dim: Count = 256


class FaceResNetSettings(EncoderSettings):
    """ResNet-34 on face crops, trained from scratch [C]."""

    architecture: Literal["face_resnet34"] = "face_resnet34"
    width: Count = 64
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    embedding_dim: Count = 256


class FeatureSettings(Settings):
    """Kaldi-compatible log mel filter bank, 25 ms windows every 10 ms [S]."""

    num_mels: Count = 80
    window: Literal["hamming", "povey"] = "hamming"


class CropCounts(Settings):
    """How many long (global) and short (local) crops of one utterance stage 1 takes."""

    global_crops: Count | None = Field(None, description="default: what the objective asks for; DINO 2 [S], SDPN 1 [S]")
    local_crops: int | None = Field(None, ge=0, description="default: what the objective asks for; 4 [S]")

    def counts(self, plan: ViewPlan) -> tuple[int, int]:
        """Long and short crops."""
        long, short = self.global_crops, self.local_crops
        return plan.long_crops if long is None else long, plan.short_crops if short is None else short


class AudioViewSettings(CropCounts):
    """Crops of one utterance for stage 1 [S wespeaker v3/dino]."""

    global_seconds: Positive = 3.0
    local_seconds: Positive = 2.0


class FaceViewSettings(CropCounts):
    """Crops of one utterance's faces for stage 1 [C]; sizes in pixels after augmentation."""

    global_size: Count = 112
    global_policy: ImagePolicy = ImagePolicy()
    local_size: Count = 112
    local_policy: ImagePolicy = ImagePolicy(scale=(0.15, 0.4))


class AudioSettings(Settings):
    """The audio modality."""

    encoder: Annotated[EcapaSettings | AudioResNetSettings, Field(discriminator="architecture")] = EcapaSettings()
    features: FeatureSettings = FeatureSettings()
    views: AudioViewSettings = AudioViewSettings()
    policy: AudioPolicy = AudioPolicy()
    refine_seconds: Positive = Field(3.0, description="[C] crop length of the classifier rounds")


class FaceSettings(Settings):
    """The face modality."""

    encoder: FaceResNetSettings = FaceResNetSettings()
    views: FaceViewSettings = FaceViewSettings()
    refine_size: Count = 112
    refine_policy: ImagePolicy = ImagePolicy(scale=(0.6, 1.0), grey=0.1, blur=0.2)


class OptimiserSettings(Settings):
    """Learning rates are per 256 examples of the global batch when `scale_with_batch` [S]."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.2
    final_learning_rate: float = Field(5e-5, ge=0)
    scale_with_batch: bool = True
    warmup_epochs: float = Field(20.0, ge=0)
    weight_decay: float = Field(5e-5, ge=0, description="none on biases and norms")
    momentum: Probability = 0.9
    clip_norm: Positive = Field(3.0, description="of each modality's gradient on its own")


class ClusterAwareSettings(Settings):
    """Positives from several utterances of one cluster (CA-DINO, arXiv 2304.05754 [S]; schedule [C])."""

    enabled: bool = True
    start: Probability = Field(0.6, description="fraction of the epochs after which it begins")
    every: Count = Field(5, description="epochs between clusterings")
    num_clusters: Count | list[Count] = Field(7500, description="fixed, or one per clustering (the last one repeats)")
    utterances: int = Field(6, ge=2, description="at most this many utterances an example")


class PretrainSettings(Settings):
    """Stage 1 [S wespeaker v3/dino]."""

    objective: ObjectiveSettings = DinoSettings()
    epochs: Count = 150
    batch_size: Count = Field(512, description="over all processes")
    optimiser: OptimiserSettings = OptimiserSettings()
    teacher_momentum: Probability = Field(0.996, description="rises to 1 by a cosine")
    average_last: Count = Field(10, description="the model is the mean of this many last teachers")
    cluster_aware: ClusterAwareSettings = ClusterAwareSettings()


class ClassifySettings(Settings):
    """Classification of pseudo labels by AAM-softmax [S]."""

    epochs: Count = 15
    batch_size: Count = 512
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=0.1, final_learning_rate=5e-5, warmup_epochs=1)
    encoder_learning_rate: Positive = Field(
        1.0, description="factor on the encoder's learning rate against the classifier's [C]"
    )
    scale: Positive = 32.0
    margin: float = Field(0.2, ge=0)
    margin_start_epoch: float = Field(1.0, ge=0, description="the margin rises from 0 between these two epochs")
    margin_full_epoch: float = Field(4.0, ge=0)


class RefineSettings(ClassifySettings):
    """Stage 2: one round of classification on judged pseudo labels [S where the method gives it]."""

    judge: JudgeSettings = GatedCorrectionSettings()
    clean_seconds: Positive | None = Field(
        None, description="length of the clean view that the judge hears; default: the crop that is trained on [C]"
    )
    ema_momentum: Probability = Field(
        0.99, description="the judge hears an exponential mean of the model with this momentum, 0: the model itself [C]"
    )
    keep: Literal["last", "ema"] = Field("last", description="which weights a round leaves [C]")
    start_from: Literal["last", "stage_one"] = Field(
        "last", description="encoders that a round starts from: those of the stage before, or of stage 1 [C]"
    )


class LargeMarginSettings(ClassifySettings):
    """Large-margin fine-tuning of the audio model on trusted labels, on longer crops without augmentation.

    Margin and seconds are [S]. Without augmentation is [C]: public recipes keep it on; see eval/README.md.
    """

    enabled: bool = True
    epochs: Count = 5
    batch_size: Count = 256
    margin: float = Field(0.5, ge=0)
    margin_start_epoch: float = Field(0.0, ge=0)
    margin_full_epoch: float = Field(0.0, ge=0)
    seconds: Positive = 6.0
    augmented: bool = False
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-3, final_learning_rate=1e-5, warmup_epochs=0)


class TrainingSettings(Settings):
    """How the loop runs. These settings change only rounding, and the part of a batch that batch norm sees."""

    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto",
        description="no: float32; fp16: with a loss scale, for GPUs without bf16 (T4, V100); auto: bf16 on GPUs that "
        "have it, fp16 on others; on CPUs bf16 if a timing at the start favours it, else float32; a continued run "
        "keeps the precision of its start",
    )
    processes: Count | None = Field(None, description="stop unless exactly this many processes were launched")
    threads: Count | None = Field(None, description="CPU threads of each process; default: cores / processes")
    workers: int = Field(8, ge=0, description="loader processes per rank")
    timeout_minutes: Positive = Field(30.0, description="a process that waits longer for another one ends the run")
    sync_batchnorm: bool = True
    accumulation: Count = Field(
        1, description="a process takes its share of a batch in this many parts, to save memory; batch norm sees a part"
    )
    tf32: bool = Field(
        False, description="TensorFloat-32, on GPUs that have it: float32 products of a step, all convolutions"
    )
    channels_last: bool = Field(False, description="2-D convolutions, that is the faces', in channels-last layout")
    compile: bool = Field(False, description="torch.compile the encoders")
    checkpoint_minutes: Positive = Field(15.0, description="at most this long between checkpoints inside an epoch")
    checkpoint_steps: int = Field(0, ge=0, description="also after this many steps; 0: by the clock only")
    keep_checkpoints: Count = 2
    log_steps: Count = 50
    trackers: list[str] = Field(
        [], description="in addition to log.jsonl, by accelerate's names: tensorboard, wandb, mlflow, trackio, ..."
    )
    embed_seconds: Positive = Field(320.0, description="seconds of audio in one embedding batch")


class EvaluationSettings(Settings):
    """Audio-only scoring of the trial lists."""

    bootstrap: Count = Field(500, description="speaker bootstrap replicates for the 95 % intervals")


class Config(Settings):
    """A run: data, models, stages."""

    output: Path = Field(description="run folder")
    seed: int = Field(0, ge=0)
    stage_one: Path | None = Field(
        None, description="folder of a run whose finished stage 1 is copied, not trained again; settings must agree"
    )
    modalities: list[Modality] = Field(["audio", "face"])
    rounds: int = Field(2, ge=0)
    data: DataSettings
    audio: AudioSettings = AudioSettings()
    face: FaceSettings = FaceSettings()
    pretrain: PretrainSettings = PretrainSettings()
    cluster: ClusterSettings = MetricSettings()
    refine: RefineSettings = RefineSettings()
    large_margin: LargeMarginSettings = LargeMarginSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if "audio" not in self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(
                f"modalities is {self.modalities}; valid are [audio] and [audio, face]: the speaker model is audio"
            )
        unknown = set(self.cluster.weights) - set(get_args(Modality)) if self.cluster.weights != "auto" else set()
        if unknown:
            raise ValueError(f"cluster.weights: {sorted(unknown)} are no modalities; valid: {list(get_args(Modality))}")
        plan = self.pretrain.objective.views
        for name in self.modalities:
            if problem := plan.problem(*getattr(self, name).views.counts(plan)):
                raise ValueError(f"{name}.views.{problem}")
        if problem := self.refine.judge.problem(self.modalities):
            raise ValueError(f"refine.judge.{problem}")
        if self.refine.judge.first_epoch < self.refine.margin_full_epoch:
            raise ValueError(
                "refine.judge.gate.start_epoch must not come before refine.margin_full_epoch: "
                "the gate reads losses after the ramp"
            )
        return self


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, its `inherit` chain and `key.path=value` overrides.

    A file adds to what it inherits, key by key; an override replaces the value at its key. `null` removes an entry
    of a dictionary with free keys.

    Raises ConfigError on a missing file, bad YAML, an unknown key (naming the nearest valid one), a bad value, or a
    null for an entry that is not inherited.
    """
    tree = _read_yaml(Path(path), seen=())
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r} is not of the form key.path=value, e.g. pretrain.epochs=10")
        _set(tree, _split(key), _parse_yaml(value, f"override {override!r}"), key)
    return parse_config(tree, source=str(path))


def parse_config(tree: dict[str, Any], source: str = "config") -> Config:
    """Validate a plain tree; see `load_config`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(
            f"{source} has {len(lines)} bad setting(s):\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


Differences = dict[str, tuple[Any, Any]]
"""Dotted key -> its two values."""


def differing_keys(old: Config, new: Config) -> Differences:
    """The differences of two configs, in the order of the keys; None for a key that one of them lacks."""
    before, after = dict(_leaves(old.model_dump(mode="json"))), dict(_leaves(new.model_dump(mode="json")))
    pairs = {key: (before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())}
    return {key: (first, second) for key, (first, second) in pairs.items() if first != second}


def describe(differences: Differences) -> list[str]:
    """One line `key: old -> new` for each difference."""
    return [f"{key}: {first!r} -> {second!r}" for key, (first, second) in differences.items()]


def flat_settings(config: Config) -> dict[str, str | int | float | bool]:
    """Dotted key -> value of every setting; other values than numbers and strings become strings."""
    leaves = _leaves(config.model_dump(mode="json"))
    return {key: value if isinstance(value, (str, int, float)) else str(value) for key, value in leaves}


def _read_yaml(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path} inherits from itself")
    if not path.exists():
        raise ConfigError(f"no config file at {path}; see configs/ for the ones that are shipped")
    tree = _parse_yaml(read_text(path, "config", ConfigError), str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold `key: value` settings, not a {type(tree).__name__}")
    parent = tree.pop("inherit", None)
    base: dict[str, Any] = {}
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError(f"{path}: inherit is {parent!r}, must be the path of one config, relative to this one")
        base = _read_yaml(path.parent / parent, (*seen, path.resolve()))
    return _merge(base, tree, str(path))


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None


def _merge(base: dict[str, Any], top: dict[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    """`base` with the values of `top`, node by node; see `_put` for nulls."""
    merged = dict(base)
    for key, value in top.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            node = base.get(key)
            merged[key] = _merge(node if isinstance(node, dict) else {}, value, source, f"{path}.")
        else:
            _put(merged, key, value, path, source)
    return merged


def _put(node: dict[str, Any], key: Any, value: Any, path: str, source: str) -> None:
    """Set `key`, whose dotted path is `path`; null removes a free dictionary, or an entry of one."""
    free = free_dictionaries()
    if value is None and path in free:
        node.pop(key, None)
    elif value is None and path.removesuffix(f".{key}") in free:
        if key not in node:
            raise ConfigError(
                f"{source}: {path}: null takes an inherited entry out, but there is none of this name; "
                f"inherited: {', '.join(map(str, node)) or 'none'}"
            )
        del node[key]
    else:
        node[key] = value


def _split(key: str) -> list[str]:
    """Parts of an override's key; names in a free dictionary may contain dots."""
    for free in free_dictionaries():
        if key.startswith(f"{free}."):
            return [*free.split("."), key.removeprefix(f"{free}.")]
    return key.split(".")


def _set(tree: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    for key in keys[:-1]:
        node = tree.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {path}: {key} is a value, not a group of settings")
        tree = node
    _put(tree, keys[-1], value, path, "override")


@cache
def free_dictionaries() -> tuple[str, ...]:
    """Dotted keys of the settings that are dictionaries with free keys."""
    return tuple(key for key, annotation in _fields(Config) if get_origin(annotation) is dict)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        shown = "" if item["type"] == "missing" else f" (got {str(item['input'])[:80]!r})"
        return f"{key or 'config'}: {item['msg']}{shown}"
    known = sorted(set(_known_keys(Config)))
    last = key.split(".")[-1]
    moved = [name for name in known if name.split(".")[-1] == last]  # the same key in another group: it may have moved
    nearest = (
        difflib.get_close_matches(key, moved, n=1, cutoff=0.0)
        or difflib.get_close_matches(key, known, n=1)
        or difflib.get_close_matches(last, known, n=1, cutoff=0.4)
    )
    return f"{key}: unknown key" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _known_keys(model: type[BaseModel]) -> Iterator[str]:
    yield from (key for key, _ in _fields(model))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and annotation of every setting below a node."""
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        yield key, field.annotation
        for node in _nodes(field.annotation):
            yield from _fields(node, key)


def _nodes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _nodes(argument)
