"""The card of a trained captioner, the `README.md` of its folder, from what was measured of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from transformers import AutoConfig

from ..errors import InputError
from ..models.sharing_captioner import HUB_TASK, NO_LICENSE, model_card

# Read now: a training that ends without its card would find out too late.
TEMPLATE = Path(__file__).with_name("card_template.md").read_text("utf-8")
# The Hub's names of metrics. What is not here is published under its own name, as METEOR without its dictionary and
# paraphrases is: other people's METEOR is another number.
HUB_METRICS = {f"bleu_{order}": "bleu" for order in range(1, 5)}
HUB_METRICS |= {"rouge_l": "rouge", "meteor_1.5": "meteor", "cider": "cider", "cider_d": "cider", "spice": "spice"}
CURVE = ("loss", "bleu_4", "cider_d", "exact_match")
NUM_SAMPLES = 4


def write_card(
    folder: Path, evaluation: Path | None = None, name: str | None = None, license: str | None = None
) -> ModelCard:
    """
    Writes `README.md` into the folder of a captioner and, of an evaluation on a data set of the Hub, its results into
    `.eval_results/`, from where the Hub shows them on the pages of the model and the data set.

    Args:
        folder: with its configuration and what train.py, calibrate and convert left there: `training.json`,
            `trainer_state.json`, `eval_results.json`, `samples.json`, `calibration.json`, `conversion.json`; what is
            missing is left out of the card.
        evaluation: with the `metrics.json` of evaluate_captions.py, which then goes before the trainer's metrics.
        name: folder or Hub repository to load it from.
        license: of the weights, by the Hub's identifier, such as `"cc-by-4.0"`. By default what the card that is there
            says, or else `"unknown"`: it depends on the training data and on the vision weights.

    Returns:
        the card, which is in the folder now.

    Raises:
        OSError: if there is no captioner in the folder, or no `metrics.json` in the evaluation's.
        InputError: if other weights were evaluated than those in the folder, or a file of captions.

    Examples:
        >>> from pathlib import Path
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.sharing import write_card
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(vision_config=vision, vocab_size=40))
        >>> model.save_pretrained("captioner")
        >>> card = write_card(Path("captioner"), name="me/captioner", license="cc-by-4.0")
        >>> card.data.license, "me/captioner" in card.text
        ('cc-by-4.0', True)
    """
    name = name or folder.absolute().name
    training, state = read(folder / "training.json"), read(folder / "trainer_state.json")
    report: dict | None = None
    if evaluation is not None:
        if not (evaluation / "metrics.json").exists():
            raise FileNotFoundError(f"`evaluation` must hold a metrics.json, got {evaluation}")
        report = read(evaluation / "metrics.json")
        if "weights_sha256" not in report["setting"]:
            captions = report["setting"]["captions"]
            raise InputError(f"`evaluation` must be of the weights in {folder}, got {evaluation} of {captions}")
        if report["setting"]["weights_sha256"] != weights_sha256(folder):
            raise InputError(f"`evaluation` must be of the weights in {folder}, got {evaluation} of others")
    card = model_card(AutoConfig.from_pretrained(folder), name, license or license_of(folder / "README.md"))
    measured = from_evaluation(report) if report else from_trainer(read(folder / "eval_results.json"), training)
    card.data.datasets = hub_datasets(training)
    origin = read(folder / "conversion.json")
    if "revision" in origin:  # a repository, not a folder of somebody's machine
        card.data.base_model = origin["converted_from"]
    if results := measured.pop("results"):
        card.data.model_name, card.data.eval_results = name.split("/")[-1], results
    card = ModelCard.from_template(
        card.data,
        template_str=TEMPLATE,
        introduction=card.text.strip() + "\n",
        origin=origin,
        samples=samples(folder),
        attention=(folder / "attention.png").exists(),
        confidence=confidence(read(folder / "calibration.json"), report),
        **measured,
        **progress(training, state),
    )
    card.save(folder / "README.md")
    if report and is_hub_dataset(report["setting"]["data"]):
        entries = hub_results(report)
        path = folder / ".eval_results" / f"{report['setting']['data'].replace('/', '_')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), "utf-8")
    return card


def weights_sha256(folder: Path) -> list[str]:
    """Of every weight file, by which an evaluation and its captioner are known to belong together."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))]


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def license_of(card: Path) -> str:
    """What the card says, if there is one."""
    if not card.exists():
        return NO_LICENSE
    return ModelCard.load(card, ignore_metadata_errors=True).data.license or NO_LICENSE


def hub_datasets(training: dict) -> list[str] | None:
    """The data sources that are data sets on the Hub, not local files or generated ones."""
    names = {training[name] for name in ("train_data", "eval_data") if training.get(name)}
    return sorted(filter(is_hub_dataset, names)) or None


def is_hub_dataset(source: str) -> bool:
    return source.count("/") == 1 and not Path(source).exists() and not Path(source).suffix and ":" not in source


def hub_results(report: dict) -> list[EvalResultEntry]:
    """What `metrics.json` says, as entries of `.eval_results/*.yaml`: the metric is the task within the data set."""
    setting = report["setting"]
    about = f"split {setting['split']}, " if setting["split"] else ""
    about += f"{setting['num_images']} images, {setting['num_beams']} beams"
    return [
        EvalResultEntry(
            dataset_id=setting["data"],
            task_id=name,
            value=round(value, 4),
            notes=f"{about}, 95 % interval {' to '.join(f'{end:.4f}' for end in report['intervals_95'][name])}",
        )
        for name, value in report["metrics"].items()
        if not isinstance(value, str)
    ]


def result(metric: str, value: float, source: str, split: str | None, arguments: dict) -> EvalResult:
    """An entry of the model index."""
    return EvalResult(
        task_type=HUB_TASK,
        task_name="Image captioning",
        dataset_type="/".join(Path(source.split(":")[0]).with_suffix("").parts[-2:]),
        dataset_name=source,
        dataset_split=split,
        metric_type=HUB_METRICS.get(metric, metric),
        metric_name=metric,
        metric_value=round(value, 4),
        metric_args=arguments,
    )


def row(name: str, value: float, interval: list[float] | None = None) -> dict:
    shown = "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return {"name": name, "score": f"{value:.4f}", "interval": shown}


def from_evaluation(report: dict) -> dict:
    """What `metrics.json` says, for the table and for the model index."""
    setting, intervals, checks = report["setting"], report["intervals_95"], report["checks"]
    scores = {name: value for name, value in report["metrics"].items() if not isinstance(value, str)}
    # Earlier versions' evaluations have neither of these.
    rule = setting.get("no_repeat_ngram_size")
    rule = f", no {rule} tokens in succession twice" if rule else ""
    repetitions = ""
    if "repetition_rate" in checks:
        repetitions = f"; three words in succession said again: {100 * checks['repetition_rate']:.1f} %"
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size", "max_new_tokens", "num_images")
    arguments = {name: setting[name] for name in names if name in setting}
    arguments |= {"tokens": report["definitions"]["tokens"], "references_sha256": setting["references_sha256"]}
    arguments |= {"weights_sha256": setting["weights_sha256"], "hf_captioner": report["versions"]["hf_captioner"]}
    return {
        "results": [
            result(
                name,
                value,
                setting["data"],
                setting["split"],
                arguments | ({"interval_95": [round(x, 4) for x in intervals[name]]} if name in intervals else {}),
            )
            for name, value in scores.items()
        ],
        "metrics": [row(name, value, intervals.get(name)) for name, value in scores.items()],
        "intervals": True,
        "measured_on": (
            f"By `training/evaluate_captions.py` on `{setting['data']}`: "
            f"{setting['num_images'] - report.get('num_unreadable', 0)} images with "
            f"{setting['num_references']} references, beams: {setting['num_beams']}, at most "
            f"{setting['max_new_tokens']} tokens{rule}. Tokens are those of the COCO caption evaluation; intervals "
            "are bootstrapped over images."
        ),
        "checks": (
            f"Different captions: {100 * checks['unique_ratio']:.1f} %; words used: {checks['vocabulary']}; words a "
            f"caption: {checks['mean_length']:.1f}; bad endings: {100 * checks['bad_ending_rate']:.1f} %{repetitions}."
            f" Handed to other images, the captions' CIDEr-D falls from {checks['cider_d']:.4f} to "
            f"{checks['cider_d_shuffled']:.4f}."
            + "".join(f" Alarm: {cause}, {text}." for cause, text in report.get("alarms", {}).items())
        ),
    }


def from_trainer(results: dict, training: dict) -> dict:
    """What the trainer measured at its end."""
    scores = {name.removeprefix("eval_"): value for name, value in results.items() if name.startswith("eval_")}
    own = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    scores = {name: value for name, value in scores.items() if name not in own and isinstance(value, float)}
    source = training.get("eval_data", "evaluation data")
    arguments = {"num_beams": training["num_beams"]} if "num_beams" in training else {}
    return {
        "results": [
            result(name, value, source, training.get("eval_split"), arguments) for name, value in scores.items()
        ],
        "metrics": [row(name, value) for name, value in scores.items()],
        "intervals": False,
        "measured_on": f"By `training/train.py` on `{source}` at the end of training.",
        "checks": None,
    }


def progress(training: dict, state: dict) -> dict:
    """Command, length and learning curve."""
    history = state.get("log_history", [])
    evaluations = [entry for entry in history if "eval_loss" in entry]
    names = [name for name in CURVE if all(f"eval_{name}" in entry for entry in evaluations)]
    seconds = next((entry["train_runtime"] for entry in history if "train_runtime" in entry), None)
    return {
        "command": training.get("command"),
        "train_data": training.get("train_data"),
        "steps": state.get("global_step"),
        "runtime": None if seconds is None else f"{seconds / 60:.1f} minutes",
        "alarms": [f"step {one['step']}, {one['cause']}: {one['text']}" for one in training.get("alarms", [])],
        "curve_names": names,
        "curve": [[entry["step"], *(f"{entry[f'eval_{name}']:.4f}" for name in names)] for entry in evaluations],
    }


def confidence(calibration: dict, report: dict | None) -> str:
    """How far probabilities and scores can be believed, as `calibrate` measured it, and `evaluate` for the curve."""
    parts = []
    if calibration:
        words, percent = calibration["words"], [f"{100 * share:.1f} %" for share in calibration["abstained"].values()]
        parts.append(
            f"`hf-captioner calibrate` on `{calibration['data']}`, {calibration['num_images']} images: half of them "
            f"gave the temperature of the probabilities, {calibration['temperature']:.3f} (Guo et al. 2017), and the "
            "statistics by which images of another kind are told (Lee et al. 2018). On the other half the expected "
            f"calibration error of words, which are right if a reference has them, is {words['ece']:.3f} in place of "
            f"{words['ece_before']:.3f} before. `hf-captioner caption` abstains where the score is below "
            f"{calibration['min_score']:.3f}, on:"
        )
        table = ["| images | abstains | AUROC of the score |", "| --- | --- | --- |"]
        for name, share in zip(calibration["abstained"], percent, strict=True):
            area = f"{calibration['auroc'][name]:.3f}" if name in calibration["auroc"] else ""
            table.append(f"| {name} | {share} | {area} |")
        parts.append("\n".join(table))
    curve = report and isinstance(report.get("confidence"), dict) and report["confidence"]["risk_coverage"]
    if curve:
        half = next(risk for part, risk in zip(curve["coverage"], curve["risk"], strict=True) if part >= 0.5)
        parts.append(
            "With a caption's risk 1 - min(CIDEr-D, 1), the half of the captions with the highest scores has a mean "
            f"risk of {half:.3f}, all have {curve['risk'][-1]:.3f}; the area under the risk-coverage curve (Geifman "
            f"and El-Yaniv 2017) is {curve['area']:.3f}, {curve['area_random']:.3f} by chance."
        )
    return "\n\n".join(parts)


def samples(folder: Path) -> list[dict]:
    """Captions of the images that train.py left in `examples/`."""
    rows: list[dict] = read(folder / "samples.json") or []
    images = sorted((folder / "examples").glob("*.jpg"))[:NUM_SAMPLES]
    return [
        {
            "image": f"examples/{image.name}",
            "caption": cell(entry["caption"]),
            "reference": cell(entry["references"][0]),
        }
        for image, entry in zip(images, rows, strict=False)
    ]


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
