"""Makes scores.npz: what pytorch-ood and OpenOOD give for a small network trained on digits.

    python tests/references/make_scores.py --openood=CHECKOUT

Needs torch, pytorch-ood, scikit-learn, faiss-cpu, and a checkout of OpenOOD, none of which the tests need. Scores are
turned around where needed, so that higher means known. Of the checkout, single files are imported as they are.
"""

import argparse
import importlib
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytorch_ood.detector as by_pytorch_ood
import torch
from sklearn.datasets import load_digits
from torch import nn

KNOWN, HIDDEN, K, PERCENTILE, DIMENSION = 6, 32, 10, 90, 16
SIZES = {"train": 300, "validation": 60, "known": 40, "unknown": 40}
FILES = ("gen", "ash", "dice", "she", "nnguide", "gradnorm", "kl_matching", "vim", "mds", "rmds", "react", "knn", "ebo")


class Net(nn.Module):
    """images 64 -> features 32, ReLU -> logits 6, with the methods that OpenOOD calls."""

    def __init__(self):
        super().__init__()
        self.encoder, self.fc = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU()), nn.Linear(HIDDEN, KNOWN)

    def forward(self, x, return_feature=False):
        features = self.encoder(x)
        return (self.fc(features), features) if return_feature else self.fc(features)

    def get_fc_layer(self):
        return self.fc

    def get_fc(self):
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()


def trained():
    """({part: uint8 images [N, 64]}, {part: labels}, network)."""
    images, digits = load_digits(return_X_y=True)
    of = {"known": np.flatnonzero(digits < KNOWN), "unknown": np.flatnonzero(digits >= KNOWN)}
    ends = np.cumsum([SIZES[part] for part in ("train", "validation", "known")])
    places = dict(zip(("train", "validation", "known"), np.split(of["known"][: ends[-1]], ends[:-1])))
    places["unknown"] = of["unknown"][: SIZES["unknown"]]
    images, labels = ({part: x[at] for part, at in places.items()} for x in (images.astype(np.uint8), digits))
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x, y = as_input(images["train"]), torch.tensor(labels["train"])
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    print("accuracy on known test digits", (net(as_input(images["known"])).argmax(1).numpy() == labels["known"]).mean())
    return images, labels, net.eval().requires_grad_(False)


def as_input(images):
    return torch.tensor(images, dtype=torch.float32) / 16


def pytorch_ood(net, images, labels):
    """{score: function of images}."""
    weight, bias = net.fc.weight, net.fc.bias
    features, logits = (lambda x: net.encoder(as_input(x))), (lambda x: net(as_input(x)))
    train, y = features(images["train"]), torch.tensor(labels["train"])
    maps = lambda x: features(x)[:, :, None, None]
    head = lambda maps: net.fc(maps.flatten(1))
    fit = lambda detector: detector.fit_features(train, y)
    of_features = {
        "knn": fit(by_pytorch_ood.KNN(None, k=50)),
        "mahalanobis": fit(by_pytorch_ood.Mahalanobis(None)),
        "relative_mahalanobis": fit(by_pytorch_ood.RMD(None)),
        "vim": fit(by_pytorch_ood.ViM(None, DIMENSION, weight, bias)),
        "she": fit(by_pytorch_ood.SHE(net.encoder, net.fc)),
        "nnguide": fit(by_pytorch_ood.NNGuide(net.encoder, net.fc, k=K)),
        "dice": fit(by_pytorch_ood.DICE(None, weight, bias, PERCENTILE / 100)),
    }
    of_logits = {
        "msp": by_pytorch_ood.MaxSoftmax(None),
        "max_logit": by_pytorch_ood.MaxLogit(None),
        "energy": by_pytorch_ood.EnergyBased(None),
        "entropy": by_pytorch_ood.Entropy(None),
        "gen": by_pytorch_ood.GEN(None),
        "kl_matching": by_pytorch_ood.KLMatching(None).fit_logits(
            logits(images["validation"]), torch.tensor(labels["validation"])
        ),
    }
    of_maps = {
        f"ash-{variant}": by_pytorch_ood.ASH(None, head, f"ash-{variant}", PERCENTILE / 100) for variant in "bps"
    }
    of_maps["react"] = by_pytorch_ood.ReAct(None, head, percentile=PERCENTILE / 100).fit_feature_maps(
        maps(images["train"]), y
    )
    of_images = {"odin": by_pytorch_ood.ODIN(net)}
    gradnorm = by_pytorch_ood.GradNorm(nn.Sequential(net.fc), lambda name: name.endswith("weight"))
    net.fc.requires_grad_(True)
    return (
        {name: lambda x, each=each: each.predict_features(features(x)) for name, each in of_features.items()}
        | {name: lambda x, each=each: each.predict_logits(logits(x)) for name, each in of_logits.items()}
        | {name: lambda x, each=each: each.predict_feature_maps(maps(x)) for name, each in of_maps.items()}
        | {name: lambda x, each=each: each.predict(as_input(x)) for name, each in of_images.items()}
        | {"gradnorm": lambda x: gradnorm.predict(features(x))}
    )


def openood(net, images, labels, checkout):
    """{score: function of images}, from single files of the checkout."""
    folder = pathlib.Path(tempfile.mkdtemp()) / "openood_files"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "base_postprocessor.py").write_text(
        "class BasePostprocessor:\n    def __init__(self, config):\n        self.config = config\n"
    )
    (folder / "info.py").write_text(f"num_classes_dict = {{'digits': {KNOWN}}}\n")
    for name in FILES:
        shutil.copy(checkout / "openood/postprocessors" / f"{name}_postprocessor.py", folder)
    for name in ("ash_net", "react_net"):
        shutil.copy(checkout / "openood/networks" / f"{name}.py", folder)
    sys.path.insert(0, str(folder.parent))
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_: self
    args = dict(gamma=0.1, M=100, percentile=PERCENTILE, p=PERCENTILE, metric="inner_product", K=K, alpha=1.0)
    args |= dict(dim=DIMENSION, temperature=1)
    rows = lambda part: [dict(data=x, label=int(y)) for x, y in zip(as_input(images[part]), labels[part])]
    loaders = {
        "train": torch.utils.data.DataLoader(rows("train"), batch_size=50),
        "val": torch.utils.data.DataLoader(rows("validation"), batch_size=50),
    }
    of_module = lambda name: importlib.import_module(f"openood_files.{name}")
    found = {}
    for name in FILES:
        module = of_module(f"{name}_postprocessor")
        kind = next(value for key, value in vars(module).items() if key.endswith("Postprocessor") and key[0] != "B")
        given = types.SimpleNamespace(**args | (dict(K=50) if name == "knn" else {}))
        sweep = types.SimpleNamespace(postprocessor_args=given, postprocessor_sweep=None)
        config = types.SimpleNamespace(postprocessor=sweep, dataset=types.SimpleNamespace(name="digits"))
        detector, used = kind(config), net
        if name in ("ash", "react"):
            used = getattr(of_module(f"{name}_net"), "ASHNet" if name == "ash" else "ReactNet")(net)
        # OpenOOD takes ReAct's percentile over validation images; here, for comparison, over training images.
        given = loaders | ({"val": loaders["train"]} if name == "react" else {})
        getattr(detector, "setup", lambda *_: None)(used, given, None)
        found[name] = lambda x, detector=detector, used=used: detector.postprocess(used, as_input(x))[1]
    names = dict(mds="mahalanobis", rmds="relative_mahalanobis", ash="ash-b", ebo="energy")
    return {names.get(name, name): function for name, function in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--openood", type=pathlib.Path, required=True)
    parser.add_argument("--commit", default="", help="of the checkout, where it is not a Git repository")
    given = parser.parse_args()
    images, labels, net = trained()
    test = np.concatenate([images["known"], images["unknown"]])
    arrays = {f"images_{part}": x for part, x in images.items()}
    arrays |= {f"labels_{part}": labels[part].astype(np.uint8) for part in ("train", "validation")}
    arrays |= {name: x.numpy() for name, x in net.state_dict().items()}
    for score, function in openood(net, images, labels, given.openood).items():
        arrays[f"openood/{score}"] = np.asarray(function(test), np.float64)
    for score, function in pytorch_ood(net, images, labels).items():
        arrays[f"pytorch_ood/{score}"] = -np.asarray(function(test).detach(), np.float64)
    commit = (
        given.commit
        or subprocess.run(
            ["git", "-C", given.openood, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    arrays["versions"] = np.array(
        [f"OpenOOD {commit}"] + [f"{name} {importlib.metadata.version(name)}" for name in ("pytorch-ood", "torch")]
    )
    np.savez_compressed(pathlib.Path(__file__).with_name("scores.npz"), **arrays)


if __name__ == "__main__":
    main()
