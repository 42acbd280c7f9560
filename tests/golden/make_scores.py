"""Writes scores.npz and scores.json: scores of maps by Quantus, pytorch-grad-cam and captum.

python -m tests.golden.make_scores, with the packages of benchmarks/peers.txt, at the root of the repository

Arrays of images are (B, C, H, W), as PyTorch has them. The model's weights, the images and the maps are stored, too.
"""

import copy
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import benchmarks.peers_torchvision  # noqa: F401

# isort: split
import captum.metrics
import numpy as np
import quantus
import torch
from pytorch_grad_cam.metrics import perturbation_confidence as removal
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

SIDE, STEP, PATCH = 12, 12, 3  # pixels: of an image, of a step of flipping, of a region
PERCENTILES = (10, 30, 50, 70, 90)
RADIUS = 0.1
LARGE = 64  # side of the image whose holes are large
PACKAGES = ("quantus", "grad-cam", "captum", "torch", "numpy", "scipy")
Numbers = dict[str, np.ndarray]
Notes = dict[str, str]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model, given = small_model(), inputs()
    numbers: Numbers = dict(given)
    numbers |= {f"weights.{name}": value.numpy() for name, value in model.state_dict().items()}
    notes: Notes = {}
    for part in (curves, road, infidelity, sensitivity, localisation, randomisation):
        for name, value, note in part(copy.deepcopy(model), given):
            numbers[name], notes[name] = np.asarray(value), note
    path = Path(__file__).with_name("scores.npz")
    np.savez_compressed(path, **numbers)
    content = {
        "versions": {name: version(name) for name in PACKAGES},
        "model": "conv 4 x 4, stride 4; tanh; flattened (C, H, W); linear; tanh; linear. float64",
        "arrays": notes,
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def small_model() -> torch.nn.Module:
    layers = [
        torch.nn.Conv2d(3, 6, 4, stride=4),
        torch.nn.Tanh(),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * (SIDE // 4) ** 2, 8),
        torch.nn.Tanh(),
        torch.nn.Linear(8, 4),
    ]
    with torch.no_grad():
        for parameter in [p for layer in layers for p in layer.parameters()]:
            parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
        layers[-1].weight.mul_(3)  # so that probabilities are far from 1 / 4
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def inputs() -> Numbers:
    random = np.random.RandomState(1)
    images = random.standard_normal((3, 3, SIDE, SIDE)).astype(np.float32).astype(np.float64)
    masks = np.zeros((3, SIDE, SIDE), bool)
    masks[0, 2:7, 3:9], masks[1, 5:, :4] = True, True
    masks[2] = random.random_sample((SIDE, SIDE)) < 0.4
    yy, xx = np.mgrid[:LARGE, :LARGE]
    return {
        "images": images,
        "maps": random.standard_normal((3, SIDE, SIDE)),  # no two values are equal
        "masks": masks,
        "classes": np.array([2, 0, 3]),
        "perturbations": random.standard_normal((5, *images.shape)),
        "noise": random.uniform(-RADIUS, RADIUS, (4, *images.shape[1:])),
        "large_image": random.standard_normal((3, LARGE, LARGE)).astype(np.float32),
        "large_removed": np.hypot(yy - 30, xx - 36) < 27,  # a disc of 2289 pixels
    }


Part = Iterator[tuple[str, np.ndarray | list, str]]


def curves(model: torch.nn.Module, given: Numbers) -> Part:
    """Pixel flipping and region perturbation, with the fill that is ours too and with Quantus's own."""
    call = {
        "model": model,
        "x_batch": given["images"],
        "y_batch": given["classes"],
        "a_batch": given["maps"][:, None],
        "softmax": True,
    }
    flat = {"normalise": False, "abs": False, "disable_warnings": True}
    for fill in (0.25, "black", "mean"):
        flipping = quantus.PixelFlipping(features_in_step=3 * STEP, perturb_baseline=fill, **flat)
        note = (
            f"quantus PixelFlipping: probabilities (B, steps) after each {STEP} pixels; fill {fill}"
        )
        yield f"flipping_{fill}", flipping(**call), f"{note}; features_in_step 3 x {STEP}"
    single = quantus.PixelFlipping(features_in_step=1, perturb_baseline=0.25, **flat)
    note = "the same as flipping_0.25, a channel of a pixel a step (the default)"
    yield "flipping_channels", single(**call), note
    for order in ("morf", "lerf"):
        regions = quantus.RegionPerturbation(
            patch_size=PATCH,
            order=order,
            regions_evaluation=(SIDE // PATCH) ** 2,
            perturb_baseline=0.25,
            **flat,
        )
        note = (
            f"quantus RegionPerturbation: fall of the probability (B, regions) of {PATCH} x {PATCH}"
        )
        yield f"regions_{order}", regions(**call), note


def road(model: torch.nn.Module, given: Numbers) -> Part:
    """Pytorch-grad-cam's imputation without noise, and its scores; it takes float32 images alone."""
    images = torch.from_numpy(given["images"]).float()
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in given["classes"]]
    imputer = NoisyLinearImputer(noise=0.0)

    def precise(x: torch.Tensor) -> torch.Tensor:
        return model(x.double())

    removers = {
        "morf": removal.RemoveMostRelevantFirst,
        "lerf": removal.RemoveLeastRelevantFirst,
    }
    for order, remover in removers.items():
        scores, imputed = [], []
        for percentile in PERCENTILES:
            score = removal.PerturbationConfidenceMetric(remover(percentile, imputer))
            found = score(images, given["maps"], targets, precise, return_visualization=True)
            scores.append(found[0])
            imputed.append(found[1].numpy())
        note = f"grad-cam ROAD, {order}, noise 0, percentiles {PERCENTILES}, its float32"
        yield f"road_{order}", np.stack(scores, 1), f"{note}: change of the probability (B, P)"
        yield f"road_{order}_imputed", np.stack(imputed, 1), f"{note}: images (B, P, C, H, W)"
    combined = ROADCombined(list(PERCENTILES))(images, given["maps"], targets, precise)
    yield "road_combined", combined, "grad-cam ROADCombined, the same percentiles, noise 0.01"
    large, removed = given["large_image"], given["large_removed"]
    filled = imputer(torch.from_numpy(large).float(), torch.from_numpy(np.float32(~removed)))
    note = "grad-cam NoisyLinearImputer, noise 0: large_image at large_removed (C, pixels), float32"
    yield "large_imputed", filled.numpy()[:, removed], note


def infidelity(model: torch.nn.Module, given: Numbers) -> Part:
    """Captum's with given perturbations, and Quantus's with its own."""
    images, shifts = torch.from_numpy(given["images"]), torch.from_numpy(given["perturbations"])
    maps = torch.from_numpy(given["maps"])[:, None].expand_as(images).contiguous()
    flat = shifts.transpose(0, 1).flatten(0, 1)  # captum has the perturbations of an image in a row

    def perturb(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return flat, x - flat

    classes = torch.from_numpy(given["classes"])
    for normalize in (False, True):
        found = captum.metrics.infidelity(
            model,
            perturb,
            images,
            maps,
            target=classes,
            n_perturb_samples=len(shifts),
            normalize=normalize,
        )
        name = f"infidelity{'_normalized' * normalize}"
        yield name, found.numpy(), f"captum infidelity, normalize={normalize}, of the logit (B,)"
    block = quantus.Infidelity(
        perturb_patch_sizes=[PATCH],
        perturb_baseline=0.25,
        n_perturb_samples=2,
        disable_warnings=True,
    )
    found = block(model, given["images"], given["classes"], given["maps"][:, None], softmax=False)
    note = f"quantus Infidelity, logit (B,): blocks of {PATCH} x {PATCH} set to 0.25, all earlier ones too"
    yield "infidelity_blocks", found, note


def input_x_gradient(
    model: torch.nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = model(x).gather(1, classes[:, None]).sum()
        return (x * torch.autograd.grad(value, x)[0]).sum(1).detach()  # (B, H, W)


def sensitivity(model: torch.nn.Module, given: Numbers) -> Part:
    """Captum's and Quantus's with the given noise, of input x gradient."""
    images, noise = torch.from_numpy(given["images"]), torch.from_numpy(given["noise"])
    classes = torch.from_numpy(given["classes"])

    def explain(inputs: tuple[torch.Tensor] | torch.Tensor) -> tuple[torch.Tensor]:
        x = inputs[0] if isinstance(inputs, tuple) else inputs
        return (input_x_gradient(model, x, classes.repeat_interleave(len(x) // len(images))),)

    found = captum.metrics.sensitivity_max(
        explain,
        images,
        perturb_func=lambda x: x + noise.repeat(len(images), 1, 1, 1),
        n_perturb_samples=len(noise),
    )
    note = "sensitivity of input x gradient (B,) under `noise`"
    yield "sensitivity", found.numpy(), f"captum sensitivity_max: {note}"
    shifts = iter(given["noise"])
    largest = quantus.MaxSensitivity(
        nr_samples=len(noise),
        perturb_func=lambda arr, indices, **_: arr + next(shifts).ravel(),
        disable_warnings=True,
    )
    found = largest(
        model, given["images"], given["classes"], explain_func=_explain, channel_first=True
    )
    yield "sensitivity_quantus", found, f"quantus MaxSensitivity: {note}"


def _explain(model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray, **_) -> np.ndarray:
    x, classes = torch.as_tensor(inputs), torch.as_tensor(targets)
    return input_x_gradient(model, x, classes)[:, None].numpy()


def localisation(model: torch.nn.Module, given: Numbers) -> Part:
    """Quantus's pointing game and relevance mass, of maps with signs and without; no mask in a fourth image."""
    rows = [0, 1, 2, 0]
    masks = given["masks"][rows].copy()
    masks[3] = False
    flat = {"normalise": False, "abs": False, "disable_warnings": True}
    call = {"model": model, "x_batch": given["images"][rows], "y_batch": given["classes"][rows]}
    call |= {"s_batch": masks[:, None]}
    maps = given["maps"][rows, None]
    hits = quantus.PointingGame(**flat)(a_batch=maps, **call)
    yield "pointing", np.asarray(hits, float), "quantus PointingGame; the last image has no mask"
    mass = quantus.RelevanceMassAccuracy(**flat)
    note = "quantus RelevanceMassAccuracy; the last image has no mask"
    yield "mass", mass(a_batch=np.maximum(maps, 0), **call), f"{note}, positive part of the maps"
    yield "mass_signed", mass(a_batch=maps, **call), f"{note}, maps with signs"


def randomisation(model: torch.nn.Module, given: Numbers) -> Part:
    """Quantus's randomisation from the top: the maps that it asked for, and their correlations."""
    asked = []

    def explain(model: torch.nn.Module, inputs: np.ndarray, targets: np.ndarray, **_) -> np.ndarray:
        asked.append(_explain(model, inputs, targets))
        return asked[-1]

    flat = {"normalise": False, "abs": False, "disable_warnings": True}
    test = quantus.MPRT(layer_order="top_down", **flat)
    found = test(
        model,
        given["images"],
        given["classes"],
        explain_func=explain,
        softmax=False,
        channel_first=True,
    )
    original, _, *randomised = (maps[:, 0] for maps in asked)
    note = "quantus MPRT, top_down, input x gradient, without absolute values and normalisation"
    yield (
        "randomised_maps",
        np.stack([original, *randomised]),
        f"{note}: maps (1 + layers, B, H, W)",
    )
    yield "randomised", [found[name] for name in list(found)[1:]], f"{note}: (layers, B)"


if __name__ == "__main__":
    main()
