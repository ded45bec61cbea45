"""The settings of a run: one strict tree. avspk/common/settings_tree.py reads its YAML.

Tags: [S] stated by a source that was read, [I] inferred, [C] a choice of this project.
Defaults are the values for VoxCeleb2. The demo overrides them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from avspk.clusterers.joint_kmeans import JointKmeansSettings
from avspk.clusterers.metric import MetricSettings
from avspk.common.settings import ConfigError as ConfigError  # for the callers: these functions raise it
from avspk.common.settings import Count, DefaultKind, FirstReader, Positive, Probability, Settings
from avspk.common.settings_tree import read_tree, validate
from avspk.judges.gated_correction import GatedCorrectionSettings
from avspk.modalities.audio import AudioSettings
from avspk.modalities.base import VERIFIED, ModalitySettings
from avspk.modalities.face import FaceSettings
from avspk.models.registry import AudioEncoderSettings
from avspk.objectives.contrastive import ContrastiveSettings
from avspk.objectives.dino import DinoSettings
from avspk.objectives.losses import AamSettings
from avspk.objectives.sdpn import SdpnSettings

ClusterSettings = Annotated[MetricSettings | JointKmeansSettings, Field(discriminator="kind"), DefaultKind("metric")]

JudgeSettings = Annotated[GatedCorrectionSettings, DefaultKind("gate_and_correction")]
ClassLossSettings = Annotated[AamSettings, DefaultKind("aam")]
ObjectiveSettings = Annotated[
    DinoSettings | SdpnSettings | ContrastiveSettings, Field(discriminator="kind"), DefaultKind("dino")
]


class DataSettings(Settings):
    """Places of the media. Relative paths are relative to the working directory.

    The content of the manifest identifies the utterances, so manifest and crops may move.
    """

    first_reader: ClassVar = FirstReader.STAGE_ONE

    train: Annotated[Path, FirstReader.NOTHING] = Field(description="manifest of the training utterances")
    crops: Annotated[Path | None, FirstReader.NOTHING] = Field(
        None, description="face crop store; default: `crops` in the folder of the manifest"
    )
    noise: Path | None = Field(None, description="noise pack (`avspk noise`); none: one is generated in the run folder")
    noise_gigabytes: Positive = Field(
        18.0, description="at most this much noise is kept on the device; MUSAN and RIRS_NOISES take 16.4"
    )
    trials: Annotated[dict[str, Path], FirstReader.RESULTS] = Field(
        default_factory=dict, description="name -> trial list; null takes an inherited one out"
    )
    wav_root: Annotated[Path | None, FirstReader.RESULTS] = Field(
        None, description="folder that the names in the trial lists are relative to"
    )


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
    neighbours: int = Field(
        0,
        ge=0,
        description="the other utterances come from this many nearest other clusters; 0: from the own cluster. For "
        "many small clusters (SSPS, arXiv 2505.14561: one neighbour of 25,000 clusters [S])",
    )
    joint: bool = Field(False, description="clusters of all modalities together instead of one's own for each [C]")
    other_recordings: bool = Field(False, description="utterances of other recordings (videos) come first [C]")
    teacher_alone: bool = Field(False, description="the long crops come from the example's first utterance alone [C]")


class RecalibrateSettings(Settings):
    """Batch-norm statistics measured over clean crops before a stage's model is used; see stages/recalibrate.py [C]."""

    batches: int = Field(0, ge=0, description="0: the running averages of training stay")
    batch_size: int = Field(64, ge=2)
    seconds: Positive = Field(4.0, description="length of an audio crop; a face crop is taken whole")


class PretrainSettings(Settings):
    """Stage 1 [S wespeaker v3/dino]."""

    first_reader: ClassVar = FirstReader.STAGE_ONE

    objective: ObjectiveSettings = DinoSettings()
    init_from: dict[str, Path] = Field(
        default_factory=dict,
        description="modality -> model folder that stage 1 begins with: its encoder, and its head if it has one "
        "that fits; default: random",
    )
    embeddings: Annotated[dict[str, Path], FirstReader.ROUNDS] = Field(
        default_factory=dict,
        description="modality -> embeddings from elsewhere (.npy with its list of names, .scp, .ark), which "
        "round 1 clusters instead of those of stage 1",
    )
    epochs: int = Field(
        150,
        ge=0,
        description="0: stage 1 is what init_from names, and the rounds begin from it; from random weights if the "
        "labels of round 1 do not need it (embeddings, refine.labels)",
    )
    batch_size: Count = Field(512, description="over all processes")
    optimiser: OptimiserSettings = OptimiserSettings()
    teacher_momentum: Probability = Field(0.996, description="rises to 1 by a cosine")
    average_last: Count = Field(10, description="the model is the mean of this many last teachers")
    cluster_aware: ClusterAwareSettings = ClusterAwareSettings()
    recalibrate: RecalibrateSettings = RecalibrateSettings()


class ClassifySettings(Settings):
    """Classification of pseudo labels, by AAM-softmax [S] unless `loss` says otherwise."""

    epochs: Count = 15
    batch_size: Count = 512
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=0.1, final_learning_rate=5e-5, warmup_epochs=1)
    encoder_learning_rate: Positive = Field(
        1.0, description="factor on the encoder's learning rate against the classifier's [C]"
    )
    loss: ClassLossSettings = AamSettings()
    scale: Positive = 32.0
    margin: float = Field(0.2, ge=0)
    margin_start_epoch: float = Field(1.0, ge=0, description="the margin rises from 0 between these two epochs")
    margin_full_epoch: float = Field(4.0, ge=0)
    average_last: Count = Field(1, description="the stage leaves the mean of the weights after so many last epochs [C]")
    recalibrate: RecalibrateSettings = RecalibrateSettings()


class RefineSettings(ClassifySettings):
    """Stage 2: one round of classification on judged pseudo labels [S where the method gives it]."""

    first_reader: ClassVar = FirstReader.ROUNDS

    labels: Path | None = Field(
        None,
        description="labels of round 1 (.tsv, .csv, .parquet: utterance, label) instead of clusters; later rounds "
        "cluster. Log, report and cards name the file",
    )
    judge: JudgeSettings = GatedCorrectionSettings()
    clean_seconds: Positive | None = Field(
        None, description="length of the clean view that the judge hears; default: the crop that is trained on [C]"
    )
    ema_momentum: Probability = Field(
        0.99, description="the judge hears an exponential mean of the model with this momentum, 0: the model itself [C]"
    )
    keep: Literal["last", "ema"] = Field("last", description="which weights a round leaves [C]")
    whiten: Probability | None = Field(
        0.1,
        description="shrinkage of the within-cluster covariance by which a round whitens its encoders at the start "
        "(stages/whitening.py); null: not whitened [C]",
    )
    start_from: Literal["last", "stage_one"] = Field(
        "last", description="encoders that a round starts from: those of the stage before, or of stage 1 [C]"
    )


class LargeMarginSettings(ClassifySettings):
    """Large-margin fine-tuning of the audio model on trusted labels, on longer crops without augmentation.

    Margin and seconds are [S]. Without augmentation is [C]: public recipes keep it on; see eval/README.md.
    """

    first_reader: ClassVar = FirstReader.LARGE_MARGIN

    enabled: bool = True
    epochs: Count = 5
    batch_size: Count = 256
    margin: float = Field(0.5, ge=0)
    margin_start_epoch: float = Field(0.0, ge=0)
    margin_full_epoch: float = Field(0.0, ge=0)
    seconds: Positive = 6.0
    augmented: bool = False
    optimiser: OptimiserSettings = OptimiserSettings(learning_rate=1e-3, final_learning_rate=1e-5, warmup_epochs=0)


class FinalSettings(ClassifySettings):
    """A last student: a new audio encoder of any size, on trusted labels, after the last round.

    The defaults are those of wespeaker's supervised ResNets (voxceleb/v2) [S], without Nesterov's momentum and speed
    perturbation; its rates and margins change exponentially, these by a cosine and linearly.
    """

    first_reader: ClassVar = FirstReader.FINAL

    encoder: AudioEncoderSettings
    init_from: Path | None = Field(
        None, description="model folder whose encoder it begins with; default: random weights"
    )
    seconds: Positive = 2.0
    augmented: bool = True
    epochs: Count = 150
    batch_size: Count = 256
    optimiser: OptimiserSettings = OptimiserSettings(
        learning_rate=0.4, final_learning_rate=2e-4, warmup_epochs=6, weight_decay=1e-4
    )
    margin_start_epoch: float = Field(20.0, ge=0)
    margin_full_epoch: float = Field(40.0, ge=0)
    average_last: Count = 10


def _yaml_no(value: Any) -> Any:
    """YAML reads an unquoted no as false."""
    return "no" if value is False else value


class CalibrationSettings(Settings):
    """Clusters held out of all rounds and the large margin: the pseudo speakers of the calibration [C].

    Without any, the calibration reads labels that the model was trained on, and is overconfident.
    """

    first_reader: ClassVar = FirstReader.ROUNDS

    held_out: Probability = Field(0.05, description="share of the clusters; 0: none")
    least: Count = Field(
        10,
        description="clusters at least; a calibration needs 8, and takes an earlier round's if later ones have fewer",
    )
    most: Probability = Field(0.2, description="share of the clusters; where `least` are more, none is held out")


class TrainingSettings(Settings):
    """How the loop runs. These settings change results only by rounding, and by the rows that batch norm sees."""

    first_reader: ClassVar = FirstReader.NOTHING

    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], BeforeValidator(_yaml_no)] = Field(
        "auto",
        description="no: float32; fp16: with a loss scale, for GPUs without bf16 (T4, V100); auto: bf16 on GPUs that "
        "have it, fp16 on others; on CPUs bf16 where a timing at the start favours it, else float32; a continued run "
        "keeps what it was begun with",
    )
    processes: Count | None = Field(None, description="stop unless exactly this many processes were launched")
    threads: Count | None = Field(None, description="CPU threads of each process; default: cores / processes")
    workers: int = Field(8, ge=0, description="loader processes per rank; 0: it reads by itself, a small corpus once")
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
    checkpoint_steps: int = Field(0, ge=0, description="also every so many steps; 0: by the clock alone")
    keep_checkpoints: Count = 2
    log_steps: Count = 50
    trackers: list[str] = Field(
        [], description="in addition to log.jsonl, by accelerate's names: tensorboard, wandb, mlflow, trackio, ..."
    )
    embed_seconds: Positive = Field(320.0, description="seconds of audio in one embedding batch")


class EvaluationSettings(Settings):
    """Audio-only scoring of the trial lists."""

    first_reader: ClassVar = FirstReader.RESULTS

    bootstrap: Count = Field(500, description="speaker bootstrap replicates for the 95 % intervals")


class Config(Settings):
    """A run: data, models, stages."""

    output: Annotated[Path, FirstReader.NOTHING] = Field(description="run folder")
    seed: Annotated[int, FirstReader.STAGE_ONE] = Field(0, ge=0)
    stage_one: Annotated[Path | None, FirstReader.STAGE_ONE] = Field(
        None, description="folder of a run whose finished stage 1 is copied, not trained again; settings must agree"
    )
    modalities: Annotated[list[str], FirstReader.STAGE_ONE] = Field(
        ["audio", "face"], description="names of the groups below that are used"
    )
    rounds: Annotated[int, FirstReader.RESULTS] = Field(2, ge=0, description="the first ones do not depend on it")
    data: DataSettings
    audio: AudioSettings = AudioSettings()
    face: FaceSettings = FaceSettings()
    pretrain: PretrainSettings = PretrainSettings()
    cluster: ClusterSettings = MetricSettings()
    refine: RefineSettings = RefineSettings()
    final: Annotated[FinalSettings | None, FirstReader.FINAL] = None
    large_margin: LargeMarginSettings = LargeMarginSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        valid = type(self).modality_names()
        if unknown := set(self.modalities) - set(valid):
            raise ValueError(f"modalities: {sorted(unknown)} are no modalities; valid: {valid}")
        if VERIFIED not in self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(
                f"modalities is {self.modalities}; name each one once, and {VERIFIED} among them: the speaker model is "
                f"{VERIFIED}"
            )
        weights = getattr(self.cluster, "weights", None)  # a clusterer may have none
        if isinstance(weights, dict) and (unknown := set(weights) - set(valid)):
            raise ValueError(f"cluster.weights: {sorted(unknown)} are no modalities; valid: {valid}")
        plan = self.pretrain.objective.views
        for name, settings in self.modality_settings().items():
            if problem := plan.problem(*settings.views.counts(plan)):
                raise ValueError(f"{name}.views.{problem}")
        for key in ("init_from", "embeddings"):
            if unknown := set(getattr(self.pretrain, key)) - set(valid):
                raise ValueError(f"pretrain.{key}: {sorted(unknown)} are no modalities; valid: {valid}")
        if (why := self._start_problem()) is not None:
            raise ValueError(why)
        if problem := self.refine.judge.problem(self.modalities):
            raise ValueError(f"refine.judge.{problem}")
        if self.final is not None and self.rounds == 0:
            raise ValueError(
                "rounds is 0, but final asks for a last student, which learns the labels of the last round; set rounds "
                "to 1 or more, or final to null"
            )
        if self.calibration.held_out > self.calibration.most:
            raise ValueError(
                f"calibration.held_out is {self.calibration.held_out}; valid: 0 to calibration.most, "
                f"{self.calibration.most}"
            )
        if self.refine.judge.first_epoch < self.refine.margin_full_epoch:
            raise ValueError(
                f"refine.judge first judges after {self.refine.judge.first_epoch:g} epochs; valid: "
                f"{self.refine.margin_full_epoch:g} (refine.margin_full_epoch) or more, because it must read losses "
                "after the margin has risen. The setting of the loss gate is refine.judge.gate.start_epoch"
            )
        return self

    def _start_problem(self) -> str | None:
        """Problem with the models, labels or embeddings that the rounds start from; None without one."""
        stage_one, labels = self.pretrain, self.refine.labels
        if labels is not None and stage_one.embeddings:
            return "refine.labels and pretrain.embeddings both say what the labels of round 1 are; give one of them"
        missing = [name for name in self.modalities if name not in stage_one.init_from]
        if self.rounds:  # may start from random weights
            missing = [name for name in missing if labels is None and name not in stage_one.embeddings]
        if missing and stage_one.epochs == 0:
            return (
                f"pretrain.epochs is 0, and pretrain.init_from names no model for {missing[0]}; a round starts from "
                "random weights only where refine.labels or pretrain.embeddings give its labels"
            )
        return None

    @classmethod
    def modality_names(cls) -> list[str]:
        """Names of all modalities: the fields that hold settings of one."""
        return [name for name, _ in _modalities(cls)]

    def modality_settings(self) -> dict[str, ModalitySettings]:
        """Modality -> its settings, those of `modalities` in their order."""
        return {name: getattr(self, name) for name in self.modalities}

    @property
    def stage_one_is_joint(self) -> bool:
        """Whether the modalities depend on each other in stage 1."""
        settings = self.pretrain.cluster_aware
        return settings.enabled and settings.joint and len(self.modalities) > 1

    @property
    def rounds_cluster(self) -> bool:
        """Whether a round clusters embeddings: there is one that does not begin from given labels."""
        return self.rounds > (self.refine.labels is not None)

    def with_verified_alone(self) -> Config:
        """The same config with the modality of the speaker model alone."""
        return self.model_copy(update={"modalities": [VERIFIED]})


def _modalities(config: type[Config]) -> Iterator[tuple[str, type[ModalitySettings]]]:
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, ModalitySettings):
            yield name, field.annotation


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, its `inherit` chain and `key.path=value` overrides.

    A file adds to what it inherits, key by key; a group whose `kind` or `architecture` it changes inherits nothing. An
    override replaces the value at its key, and another `kind` the whole group. `null` takes an entry out of a
    dictionary with free keys.

    Raises: ConfigError on a missing file, bad YAML, an unknown key (it names the nearest valid one), a bad value, or a
        null for an entry that is not inherited.
    """
    return parse_config(read_tree(Config, Path(path), overrides), source=str(path))


def parse_config(tree: dict[str, Any], source: str = "config") -> Config:
    """The config of a plain tree. Raises: ConfigError, as `load_config`."""
    return validate(Config, tree, source)


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
