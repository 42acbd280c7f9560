"""What is known of a file beside its tensors: class names, several models in one file, names on the hub."""

import json
import os
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitx
from tests.small_models import small_vit
from tests.weights.test_weights import assert_one_line, assert_same_weights, tensors_of
from vitx.data.class_names import imagenet_names
from vitx.pipeline.compare import verdict
from vitx.weights import digest
from vitx.weights.hub import is_hub_name

BIRDS = ("eider", "smew, Mergellus albellus", "smew")


def folder_of(model, folder, config):
    folder.mkdir(exist_ok=True)
    vitx.save(model, folder)
    path = folder / "model.safetensors"
    save_file(load_file(path), path)  # without the metadata
    config = {"model_args": {"num_heads": 2, "img_size": list(model.preprocess.size)}} | config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Class names.


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"0": "eider", "1": "smew, Mergellus albellus", "2": "smew"}}, BIRDS),
        ({"id2label": {"2": "smew", "1": "smew, Mergellus albellus", "0": "eider"}}, BIRDS),
        ({"label_names": list(BIRDS)}, BIRDS),
        ({"pretrained_cfg": {"label_names": list(BIRDS)}}, BIRDS),
        (
            {"label_names": ["n1", "n2", "n3"], "label_descriptions": {"n1": "eider", "n3": "x"}},
            ("eider", "n2", "x"),
        ),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, None),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, None),
        ({"id2label": {"0": "a", "1": "b"}}, None),
        ({"label_names": ["a", "", "c"]}, None),
        ({"label_names": 3}, None),
        ({}, None),
    ],
)
def test_names_beside_a_file(config, names, tmp_path):
    model = vitx.load(folder_of(small_vit(), tmp_path / "birds", config))
    assert model.class_names == names
    assert model.class_names_source == (None if names is None else "config")
    assert vitx.load(tmp_path / "birds", num_classes=5).class_names is None  # a new head
    assert model.without_head().class_names is None


def test_a_thousand_classes_are_imagenets_only_without_other_names(tmp_path):
    model = small_vit(num_classes=1000)
    birds = [f"bird {number}" for number in range(1000)]
    for config, names, source in (
        ({"label_names": birds}, tuple(birds), "config"),
        ({"label_names": birds[:7]}, None, None),  # they are of other classes
        ({}, imagenet_names(), "assumed ImageNet"),
        ({"pretrained_cfg": {"tag": "augreg2_in21k_ft_in1k"}}, imagenet_names(), "ImageNet"),
        ({"architecture": "vit_x.fb_in1k"}, imagenet_names(), "ImageNet"),
        ({"architecture": "vit_x.fb_in22k"}, imagenet_names(), "assumed ImageNet"),
    ):
        loaded = vitx.load(folder_of(model, tmp_path / "thousand", config))
        assert (loaded.class_names, loaded.class_names_source) == (names, source)
        assert loaded.class_names is None or len(loaded.class_names) == 1000
    assert vitx.create("vit_test_conv_s4_48", num_classes=1000).class_names is None


def test_names_are_saved_unless_they_are_assumed(tmp_path):
    model = small_vit()
    model.name_classes(BIRDS, "data")
    vitx.save(model, tmp_path)
    loaded = vitx.load(tmp_path)
    assert (loaded.class_names, loaded.class_names_source) == (BIRDS, "file")
    model.name_classes(BIRDS[:2], "data")
    with pytest.raises(ValueError, match="class_names has 2 names, where the model has 3 outputs"):
        vitx.save(model, tmp_path / "wrong.safetensors")
    assumed = vitx.load(folder_of(small_vit(num_classes=1000), tmp_path / "thousand", {}))
    vitx.save(assumed, tmp_path / "again.safetensors")
    assert vitx.load(tmp_path / "again.safetensors").class_names_source == "assumed ImageNet"


def test_classes_are_explained_by_name():
    model = small_vit()
    images = np.random.default_rng(0).standard_normal((2, 8, 12, 3)).astype(np.float32)

    def maps(classes=None, **options):
        return np.asarray(vitx.explain(model, images, classes, "gradcam", **options)[1])

    with pytest.raises(ValueError, match="names of the model's classes are not known: give num"):
        maps("eider")
    model.name_classes(BIRDS, "file")
    for named, numbers in (
        ("eider", [0, 0]),
        ("EIDER", [0, 0]),
        ("eider,smew", [[0, 2], [0, 2]]),
        ("smew, Mergellus albellus", [1, 1]),
        ("Mergellus albellus", [1, 1]),
        (["smew", "eider"], [2, 0]),
        (np.array(["smew", "eider"]), [2, 0]),
        ([["smew", "eider"], ["eider", "smew"]], [[2, 0], [0, 2]]),
    ):
        np.testing.assert_array_equal(maps(named), maps(np.array(numbers)))
    for named, numbers in (
        ("smew", 2),
        (("difference", "eider", "smew"), ("difference", 0, 2)),
        (("probability", "smew"), ("probability", 2)),
    ):
        np.testing.assert_array_equal(maps(target=named), maps(target=numbers))
    with pytest.raises(ValueError, match="no class is named 'eidre'; nearest: eider"):
        maps("eidre")


# Several models in one file.


@pytest.fixture
def two(tmp_path):
    torch = pytest.importorskip("torch")
    models = small_vit(), small_vit()
    models[1].norm.bias.set_value(models[1].norm.bias[...] + 1)
    states = [
        {name: torch.from_numpy(array.copy()) for name, array in tensors_of(m, tmp_path).items()}
        for m in models
    ]

    def written(value, name="checkpoint.pth.tar"):
        torch.save(value, tmp_path / name)
        return tmp_path / name

    return models, states, written


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_a_running_mean_beside_the_weights(two, keys):
    (model, mean), states, written = two
    options = {"num_heads": 2, "image_size": (8, 12)}
    path = written({"epoch": 3, keys[0]: states[0], keys[1]: states[1]})
    with pytest.warns(UserWarning, match=f"'{keys[1]}' are read, .* which='ema' or which='model'"):
        assert_same_weights(vitx.load(path, **options), mean)
    assert_same_weights(vitx.load(path, which="ema", **options), mean)
    assert_same_weights(vitx.load(path, which="model", **options), model)
    with pytest.raises(ValueError, match="no weights of which='teacher', but those of ema, model"):
        vitx.load(path, which="teacher", **options)
    with pytest.raises(ValueError, match="which must be one of ema, model, teacher, student"):
        vitx.load(path, which="best", **options)


def test_student_and_teacher(two):
    """As DINO writes them: a backbone in a module, and a head of its own, which is left out."""
    models, states, written = two
    torch = sys.modules["torch"]
    both = {}
    for who, prefix, state in zip(
        ("student", "teacher"), ("module.backbone.", "backbone."), states, strict=True
    ):
        both[who] = {prefix + name: t for name, t in state.items() if not name.startswith("head.")}
        head = prefix.replace("backbone", "head")
        both[who] |= {
            f"{head}{name}": torch.ones(2, 2) for name in ("mlp.0.weight", "last_layer.weight_g")
        }
    path = written(both)
    options = {"num_heads": 2, "image_size": (8, 12), "num_classes": 3}
    with pytest.raises(ValueError, match="several models: give which='teacher' or which='student'"):
        vitx.load(path, **options)
    for who, model in zip(("student", "teacher"), models, strict=True):
        loaded = vitx.load(path, which=who, **options)
        assert loaded.class_names is None
        loaded.head = model.head
        assert_same_weights(loaded, model)


def test_a_file_of_one_model_has_no_choice(tmp_path):
    vitx.save(small_vit(), tmp_path)
    with pytest.raises(ValueError, match="the weights of one model: leave out which='ema'"):
        vitx.load(tmp_path, which="ema")


def test_shards_of_pytorch(two, tmp_path):
    (model, _), (state, _), written = two
    names = sorted(state)
    parts = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in parts.items():
        written({name: state[name] for name in part}, file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "tensors_of.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint, .*it has pytorch_model-00001-of-00002"):
        vitx.load(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_weights(vitx.load(tmp_path, num_heads=2, image_size=(8, 12)), model)


def test_eva_02s_own_names_are_read(tmp_path):
    """As baaivision's files of EVA-02 Ti and S: w1, w2 and w3 are gate, value and output of the MLP."""
    model = vitx.create("eva02_tiny_patch14_224", num_classes=3, image_size=28)
    tensors = tensors_of(model, tmp_path)
    theirs = {}
    for name, array in tensors.items():
        for old, new in (("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")):
            name = name.replace(old, new)
        if ".mlp.fc1." in name:
            half = len(array) // 2
            theirs[name.replace("fc1", "w1")] = array[:half].copy()
            theirs[name.replace("fc1", "w2")] = array[half:].copy()
        else:
            theirs[name] = array
    theirs["rope.freqs_cos"] = theirs["blocks.0.attn.rope.freqs_sin"] = np.ones((4, 4), np.float32)
    save_file(theirs, tmp_path / "eva.safetensors")
    loaded = vitx.load(tmp_path / "eva.safetensors", num_heads=3)
    assert loaded.design.rotary == "eva" and loaded.design.mlp == "gated"
    assert_same_weights(loaded, model)


# Names on the hub.


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", True),
        ("facebook/dinov2-small", True),
        ("facebook/dinov2-small@v1.0", True),
        ("facebook/dinov2-small@refs/pr/3", True),
        ("weights/model.safetensors", False),
        ("weights/checkpoint.pth", False),
        ("vit_base", False),
        ("/weights/vit", False),
        ("./weights", False),
        ("../weights", False),
        ("a/b/c", False),
        ("gs://bucket/vit", False),
    ],
)
def test_what_may_be_a_name(text, is_name):
    assert is_hub_name(text) == is_name


class Hub:
    """A stand-in of huggingface_hub: folders of repositories, a cache, and whether the hub is reached."""

    def __init__(self, folder):
        self.remote, self.cache, self.online, self.asked = (
            folder / "remote",
            folder / "cache",
            True,
            [],
        )

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns, local_files_only=False):
        self.asked.append((repo_id, revision, local_files_only))
        snapshot = (
            self.cache / f"models--{repo_id.replace('/', '--')}/snapshots/{revision or 'abc'}"
        )
        if local_files_only and not snapshot.is_dir():
            raise FileNotFoundError("LocalEntryNotFoundError")
        if not local_files_only:
            if not self.online:
                raise ConnectionError("no route to host\nand more")
            repository = self.remote / repo_id
            if not repository.is_dir():
                raise LookupError("404: there is no such repository")
            for file in repository.iterdir():
                assert "*.bin" not in allow_patterns
                if any(file.match(pattern) for pattern in allow_patterns):
                    snapshot.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, snapshot)
        return os.fspath(snapshot)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path)
    module = SimpleNamespace(snapshot_download=stand_in.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return stand_in


def published(hub, name, config=None):
    folder = hub.remote / name
    folder.parent.mkdir(parents=True)
    return folder_of(small_vit(), folder, config or {"label_names": list(BIRDS)})


def test_a_name_is_fetched_once_and_then_read_from_the_cache(hub):
    folder = published(hub, "timm/vit.birds")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    loaded = vitx.load("timm/vit.birds")
    assert_same_weights(loaded, vitx.load(folder))
    assert loaded.class_names == BIRDS
    assert not list(hub.cache.rglob("*.bin"))
    hub.online, hub.asked[:] = False, []
    assert_same_weights(vitx.load("timm/vit.birds"), loaded)
    assert digest("timm/vit.birds") == digest(folder)
    assert {local for _, _, local in hub.asked} == {True}
    hub.online = True
    vitx.load("timm/vit.birds@v2")
    assert hub.asked[-1] == ("timm/vit.birds", "v2", False)


def test_a_folder_of_the_name_comes_first(hub, tmp_path):
    (tmp_path / "timm").mkdir()
    folder_of(small_vit(), tmp_path / "timm" / "vit", {})
    vitx.load("timm/vit")
    assert hub.asked == []


def test_the_name_on_the_hub_implies_statistics(hub):
    published(hub, "facebook/deit-x")
    assert vitx.load("facebook/deit-x").preprocess.mean == (0.485, 0.456, 0.406)


COMMAND = (
    "curl -fL --create-dirs --output-dir weights/vit --remote-name-all "
    "'https://huggingface.co/timm/vit/resolve/main/{config.json,preprocessor_config.json,model.safetensors}', "
    "then give weights/vit (timm's have no preprocessor_config.json)"
)


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("offline", "the hub does not give it (ConnectionError: no route to host)"),
        ("unknown", "the hub does not give it (LookupError: 404: there is no such repository)"),
        ("pickles", "the hub has no model.safetensors or model.safetensors.index.json of it"),
        ("no extra", 'huggingface_hub is not installed: pip install "vitx[hub]"'),
    ],
)
def test_a_name_that_is_not_had_comes_with_the_command(state, what, hub, monkeypatch):
    if state == "pickles":
        folder = published(hub, "timm/vit")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.online = state != "offline"
    if state == "no extra":
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError) as error:
        vitx.load("timm/vit")
    assert_one_line(error, "timm/vit: there is no such file or folder here", what, COMMAND)


def cached(hub, name, *files):
    """The folder of a name in the cache, with these files of its repository alone."""
    folder = hub.cache / f"models--{name.replace('/', '--')}/snapshots/abc"
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(hub.remote / name / file, folder)
    return folder


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def in_shards(folder):
    """Splits the file of a repository in two, as transformers does."""
    tensors = load_file(folder / "model.safetensors")
    places = {name: SHARDS[number % 2] for number, name in enumerate(tensors)}
    for shard in SHARDS:
        of_it = {name: tensors[name] for name in tensors if places[name] == shard}
        save_file(of_it, folder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        (["config.json"], "model.safetensors"),
        (["model.safetensors.index.json", "config.json"], ", ".join(SHARDS)),
        (["model.safetensors.index.json", SHARDS[1]], f"{SHARDS[0]}, config.json"),
    ],
)
def test_a_part_in_the_cache_is_completed_or_refused(files, lacks, hub):
    folder = published(hub, "timm/vit")
    if sharded := files[0] != "config.json":
        in_shards(folder)
    part = cached(hub, "timm/vit", *files)
    hub.online = False
    with pytest.raises(FileNotFoundError) as error:
        vitx.load("timm/vit")
    names = ",".join(
        ["model.safetensors.index.json", *SHARDS] if sharded else ["model.safetensors"]
    )
    command = (
        f"resolve/main/{{config.json,preprocessor_config.json,{names}}}', then give weights/vit"
    )
    assert_one_line(error, "no route to host); its local cache lacks " + lacks + ". By", command)
    hub.online = True
    assert_same_weights(vitx.load("timm/vit"), vitx.load(folder))
    assert {file.name for file in folder.iterdir()} == {file.name for file in part.iterdir()}
    hub.online = False
    vitx.load("timm/vit")  # now it is whole


def test_a_shard_that_the_hub_does_not_have_is_named(hub):
    in_shards(folder := published(hub, "timm/vit"))
    (folder / SHARDS[0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"the hub has no {SHARDS[0]} of it"):
        vitx.load("timm/vit")


def test_json_that_the_cache_lacks_is_fetched_or_missed_aloud(hub):
    """Who loaded the model alone with transformers has no image processor in the cache."""
    folder = published(hub, "google/vit", {"model_type": "vit"})
    (folder / "processor_config.json").write_text("{}")
    cached(hub, "google/vit", "config.json", "model.safetensors")
    hub.online = False
    with pytest.warns(UserWarning, match="its local cache lacks preprocessor_config.json, so that"):
        vitx.load("google/vit")
    hub.online = True
    vitx.load("google/vit")
    hub.online, hub.asked[:] = False, []
    vitx.load("google/vit")
    assert {local for _, _, local in hub.asked} == {True}


def test_the_verdict_of_compare_says_that_heads_were_guessed():
    difference = SimpleNamespace(relative=1e-12, stage="norm")
    parity = SimpleNamespace(reasons=(), differences=[difference], predicted=(), tolerance=1e-9)
    assert verdict(parity).startswith("verdict: equal, largest relative difference 1.0e-12 (norm)")
    assert verdict(parity, guessed=True).startswith("verdict: equal, but heads were guessed, ")


def test_the_evaluation_is_saved(tmp_path):
    model = small_vit()
    changes = {"interpolation": "bicubic", "crop_mode": "center", "crop_pct": 0.9}
    model.preprocess = replace(model.preprocess, **changes)
    vitx.save(model, tmp_path)
    assert vitx.load(tmp_path).preprocess == model.preprocess
