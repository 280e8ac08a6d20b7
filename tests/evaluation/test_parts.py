"""Parts of an evaluation fail independently; shared work is done once."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image
from stored_data import write_folder
from untrained_runs import animals, digits, untrained, write_noise

from gradmix_jax import config as config_lib
from gradmix_jax import corruptions, main, run, run_many
from gradmix_jax import data as data_lib
from gradmix_jax.data import readers
from gradmix_jax.evaluation import closed_set, evaluate, features, guards
from gradmix_jax.training import trackers


def test_the_headline_is_written_before_the_parts_that_fail(tmp_path, monkeypatch, capsys):
    config = animals(tmp_path / "data", **{"evaluate.far": ("noise:uniform",)})
    plain, workdir = untrained(config, tmp_path / "run")
    seen = []

    def broken(evaluator, train):
        seen.append(json.loads((tmp_path / "run" / "results.json").read_text()))
        raise RuntimeError("no such decomposition")

    monkeypatch.setattr(closed_set, "spread", broken)
    tracked = {}
    tracker = types.SimpleNamespace(summarize=lambda step, found: tracked.update({step: found}), close=lambda: None)
    entry = trackers.Entry("recorder", "json", "", lambda workdir, start_step: tracker)
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", entry)
    results = run.run(config, workdir, "eval")
    (at_step,) = tracked.values()
    assert at_step["evaluation/auroc"] == results["auroc"] and list(tracked) == [results["step"]]
    assert results["failed"] == {"diversity": "RuntimeError: no such decomposition"}
    assert "evaluation, diversity failed: RuntimeError: no such decomposition" in capsys.readouterr().err
    assert seen[0]["auroc"] == results["auroc"] and seen[0]["pending"] == ["diversity", "far dataset noise:uniform"]
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "pending" not in written and written["failed"] == results["failed"]
    assert written["ood"]["far"]["noise:uniform"]["n"] == 1000 and written["closed_set"]["knn"]["k"]
    assert set(np.load(tmp_path / "run" / "scores.npz")) > {"known_scores", "labels"}


def test_a_run_is_finished_when_every_part_is_there(tmp_path):
    config = animals(tmp_path / "data")
    config.phases = (config_lib.phase("none", epochs=0, supcon=1.0, ssl=1.0),)
    plain, workdir = untrained(config, tmp_path / "run")
    run.run(config, workdir, "eval")
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text())
    for change, expected in (({}, True), ({"failed": {"probes": "x"}}, False), ({"pending": ["probes"]}, False)):
        path.write_text(json.dumps(results | change))
        assert run_many.is_finished(config, workdir) is expected


def test_the_exit_status_says_that_a_part_failed(monkeypatch, capsys):
    from absl import flags

    results = {"failed": {"diversity": "why"}}
    monkeypatch.setattr(main.run, "run", lambda *_: results)
    monkeypatch.setattr(main.report, "table", lambda *_: "the table")
    alone = dict(multihost=False, coordinator="", num_processes=None, process_id=None)
    options = dict(config=0, workdir="w", mode="eval") | alone
    monkeypatch.setattr(flags, "FLAGS", type("Flags", (), options))
    with pytest.raises(SystemExit) as stop:
        main.main(["main"])
    assert stop.value.code == 3 and "the table" in capsys.readouterr().out
    results["failed"] = {}
    main.main(["main"])


def test_class_names_may_have_slashes(tmp_path):
    """Fashion-MNIST has a class "T-shirt/top"."""
    known = data_lib.Source(None, np.arange(1), np.zeros(1, int), 8, 1, ("T-shirt/top",), "fashion_mnist")
    assert known.names == ("T-shirt/top",) and known.dataset == "fashion_mnist"
    named = lambda *classes: np.array(classes)
    guards.disjoint_names("train", ("a", named("T-shirt/top")), "x", ("b", named("other/top", "top")))
    guards.disjoint_names("train", ("a", named("1")), "x", ("b", named("1")))
    for dataset in ("a", "b"):
        with pytest.raises(ValueError, match="x must not have classes of train, got T-shirt/top; remove"):
            guards.disjoint_names("train", ("a", named("T-shirt/top")), "x", (dataset, named("T-shirt/top")))
    with pytest.raises(ValueError, match="got 1; remove"):
        guards.disjoint_names("train", ("a", named("1")), "x", ("a", named("1")))


def test_an_evaluation_with_slashes_in_class_names(tmp_path, monkeypatch):
    load = readers.load

    def with_slashes(*arguments, **options):
        data = load(*arguments, **options)
        return readers.dataclasses.replace(data, class_names=tuple(f"{name}/top" for name in data.class_names))

    monkeypatch.setattr(readers, "load", with_slashes)
    plain, workdir = untrained(animals(tmp_path / "data"), tmp_path / "run")
    results = run.evaluate(plain, workdir)
    assert results["failed"] == {}
    names = {"cat/top", "dog/top", "owl/top"}
    assert set(results["per_class"]) | set(results["per_unknown_class"]) == names
    assert set(results["confusion"]["rows"]) == names
    assert set(results["gallery"]["accepted_unknown/truth"]) <= names


def test_shared_work_is_done_once(tmp_path, monkeypatch):
    """Data is opened once per run, weights are uploaded once per evaluation, corrupted images are not hashed."""
    monkeypatch.setattr(corruptions, "NAMES", ("contrast",))
    config = digits(**{"evaluate.corruptions": "regenerated", "evaluate.scores": ("topk_cosine",)})
    config.phases = config.phases[:1]
    opened, uploaded, hashed = [], [], []
    counting = lambda calls, function: lambda *given, **options: calls.append(given) or function(*given, **options)
    monkeypatch.setattr(run.data_lib, "open_set", counting(opened, data_lib.open_set))
    monkeypatch.setattr(features, "on_devices", counting(uploaded, features.on_devices))
    monkeypatch.setattr(features, "image_hashes", counting(hashed, features.image_hashes))
    results = run.run(config, str(tmp_path))
    assert len(opened) == len(uploaded) == 1
    images = sum(len(given[0]) for given in hashed)
    data = opened and data_lib.open_set(data_lib.Spec(**config_lib.to_plain(config)["dataset"]))
    assert images == sum(len(getattr(data, part)) for part in ("train", "validation", "test_known", "test_unknown"))
    assert results["corruptions"]["n"] == results["num_known"] + results["num_unknown"]


def test_the_checks_before_training_look_at_every_corruption(tmp_path):
    config = animals(tmp_path / "data")
    for name in corruptions.NAMES:
        for severity in corruptions.SEVERITIES:
            folder = tmp_path / "release" / name / str(severity)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(tmp_path / "data" / "test")
    config.evaluate.corruptions = f"folder:{tmp_path}/release"
    experiment = run.from_config(config_lib.to_plain(config), num_devices=1)
    check = lambda: evaluate.check_data(experiment.setup, data_lib.open_set(experiment.dataset))
    check()
    last = tmp_path / "release" / corruptions.NAMES[-1] / "5"
    last.unlink()
    with pytest.raises(ValueError, match=f"neither {corruptions.NAMES[-1]}.npy with labels.npy"):
        check()
    write_folder(tmp_path / "fewer", train={}, test={"cat": 5, "dog": 5, "owl": 4})
    write_noise(tmp_path / "fewer")
    last.symlink_to(tmp_path / "fewer" / "test")
    with pytest.raises(ValueError, match=f"{corruptions.NAMES[-1]} of .*, or other classes, at severity 5"):
        check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, labels: (images, labels[:, None]), None),
        (lambda images, labels: (images, labels + 1), "labels.npy must be from 0 to 2, got 1 to 3"),
        (lambda images, labels: (images, labels[:-1]), r"labels.npy must be integers \[75\], a label per image"),
        (lambda images, labels: (images, labels / 2), "labels.npy must be integers"),
        (lambda images, labels: (images[:-1], labels[:-1]), "as many images of each of 5 severities, got 74"),
        (lambda images, labels: (images / 255, labels), "must be uint8 .*, got float64"),
    ],
)
def test_a_release_of_arrays_is_checked(tmp_path, change, message):
    config = animals(tmp_path / "data")
    images, labels = np.zeros((75, 8, 8), np.uint8), np.tile(np.repeat(np.arange(3), 5), 5)
    images, labels = change(images, labels)
    (tmp_path / "release").mkdir()
    np.save(tmp_path / "release" / "labels.npy", labels)
    for name in corruptions.NAMES:
        np.save(tmp_path / "release" / f"{name}.npy", images)
    config.evaluate.corruptions = f"folder:{tmp_path}/release"
    experiment = run.from_config(config_lib.to_plain(config), num_devices=1)
    check = lambda: evaluate.check_data(experiment.setup, data_lib.open_set(experiment.dataset))
    if message is None:
        check()
    else:
        with pytest.raises(ValueError, match=message):
            check()


def _cut(path):
    path.write_bytes(path.read_bytes()[:50])


def _bomb(path):
    image = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(image, "PNG")
    path.write_bytes(image.getvalue())


@pytest.mark.parametrize(("damage", "said"), [(_cut, "truncated"), (_bomb, "pixels")])
@pytest.mark.parametrize("place", ["data/test/owl", "data/test/cat", "near/test/fox", "shifted/test/dog"])
def test_an_image_that_only_the_evaluation_reads_is_found_before_training(tmp_path, monkeypatch, place, damage, said):
    for name, classes in {"near": ("fox",), "shifted": ("cat", "dog")}.items():
        write_folder(tmp_path / name, train={}, test=dict.fromkeys(classes, 4))
    config = animals(
        tmp_path / "data",
        **{
            "dataset.benchmark": "named",
            "dataset.known": ("cat", "dog"),
            "evaluate.near": (f"folder:{tmp_path}/near",),
            "evaluate.shifted": (f"folder:{tmp_path}/shifted",),
        },
    )
    path = sorted((tmp_path / place).iterdir())[1]
    damage(path)
    monkeypatch.setattr(run, "train", lambda *_, **__: pytest.fail("it has trained"))
    with pytest.raises(
        ValueError, match=rf"^1 of \d+ images cannot be read: {path} \(.*{said}.*\)\. Repair "
    ) as raised:
        run.run(config, str(tmp_path / "run"))
    assert "\n" not in str(raised.value)
