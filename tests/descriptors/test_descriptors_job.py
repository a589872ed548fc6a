import sys

import pytest
from descriptors_cases import HYPERS, LODE, RADIAL

from dlpr.descriptors import KINDS, descriptor
from dlpr.errors import JobError
from dlpr.job import Job
from dlpr.job.job import Descriptor

BASE = {
    "train": {"files": "a.xyz"},
    "test": {"film": {"files": "b.xyz"}, "train": "train"},
    "model": {"linear": {"regularizer": 1e-8}},
}


def job(section, base="/somewhere"):
    return Job.from_dict({**BASE, "descriptor": section}, base=base)


def test_a_job_knows_the_kinds_that_there_are():
    assert set(Descriptor.model_fields) == set(KINDS)


@pytest.mark.parametrize("section", [{"soap": HYPERS}, {"radial": RADIAL}, {"lode": LODE}])
def test_featomics_sections_go_through(section):
    for one in (section, {"parts": {"x": section}}):
        found = job(one).descriptor_of("film")
        assert found == one
        assert descriptor(found, [6]).n_features > 0


def test_parts_are_written_as_they_are_read():
    section = {"parts": {"short": {"soap": HYPERS}, "long": {"lode": LODE}}}
    made = job(section)
    assert made.resolved()["descriptor"] == section
    assert Job.from_dict(made.resolved()).descriptor == made.descriptor
    assert made.descriptor.kind == "parts"


@pytest.mark.parametrize("in_parts", [False, True])
def test_files_of_features_are_of_a_set_and_beside_the_job(in_parts):
    section = {"features": {"train": "a.npy", "film": "/there/b.zarr"}}
    made = job({"parts": {"own": section}} if in_parts else section)

    def of(name):
        found = made.descriptor_of(name)
        return found["parts"]["own"] if in_parts else found

    assert of("train") == {"features": {"file": "/somewhere/a.npy"}}
    assert of("film") == {"features": {"file": "/there/b.zarr"}}


@pytest.mark.parametrize("files", [{"train": "a"}, {"film": "a"}, {"train": "a", "flim": "b"}])
@pytest.mark.parametrize("in_parts", [False, True])
def test_each_set_has_one_file_of_features(files, in_parts):
    section = {"features": files}
    place = r"descriptor\.parts\.own" if in_parts else "descriptor"
    message = rf"{place}\.features: found files for {', '.join(files)}; needs .*: train, film"
    with pytest.raises(JobError, match=message):
        job({"parts": {"own": section}} if in_parts else section)


def test_a_call_of_python_has_its_defaults_and_the_jobs_folder():
    made = job({"python": {"call": "own.module:rows"}})
    assert Job.from_dict(made.resolved()).descriptor == made.descriptor
    found = made.descriptor_of("train")
    assert found == {
        "python": {
            "call": "own.module:rows",
            "options": {},
            "cutoff": None,
            "n_features": None,
            "nbytes_per_atom": 65536,
            "folder": "/somewhere",
        }
    }


def test_a_networks_paths_and_input_are_of_the_job():
    own = {"features": {"train": "a.npy", "film": "/there/b.zarr"}}
    network = {"call": "nets:make", "state": "w.pt", "layer": "last", "input": own}
    made = job({"parts": {"net": {"network": network}, "short": {"soap": HYPERS}}})
    assert Job.from_dict(made.resolved()).descriptor == made.descriptor
    assert made.descriptor_of("film")["parts"]["net"] == {
        "network": {
            **network,
            "options": {},
            "state": "/somewhere/w.pt",
            "layout": "distinct",
            "cutoff": None,
            "nbytes_per_atom": 2**20,
            "folder": "/somewhere",
            "input": {"features": {"file": "/there/b.zarr"}},
        }
    }
    of_mace = job({"mace": {"file": "m.model", "trust": True}}).descriptor_of("film")
    assert of_mace["mace"]["file"] == "/somewhere/m.model"


@pytest.mark.parametrize(
    "section",
    [
        {"network": {"call": "nets:make", "layer": "last"}},
        {"metatomic": {"file": "m.pt"}},
        {"mace": {"file": "m.model", "trust": True}},
    ],
)
def test_without_torch_a_network_says_what_to_install(monkeypatch, section):
    for name in ("torch", "metatomic.torch", "mace.data"):
        monkeypatch.setitem(sys.modules, name, None)
    (kind,) = section
    message = rf"descriptor\.{kind} needs .* pip install 'dlpr\[torch\]'"
    with pytest.raises(JobError, match=message):
        descriptor(job(section).descriptor_of("film"), [6])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"network": {"call": "a:b"}}, r"descriptor\.network: needs a layer, or an input"),
        (
            {"network": {"call": "a:b", "input": {"soap": HYPERS}, "cutoff": 3}},
            r"network: cutoff is of a module that takes atoms",
        ),
        (
            {"network": {"call": "a:b", "input": {"mace": {}}}},
            r"network\.input\.mace: unknown key; .*belongs at",
        ),
        (
            {"network": {"call": "a:b", "input": {"features": {"train": "a"}}}},
            r"network\.input\.features: found files for train; needs .*: train, film",
        ),
        (
            {"mace": {"file": "a"}},
            r"mace\.trust: missing; needs true, if you trust the file: it is",
        ),
        (
            {"mace": {"file": "a", "trust": False}},
            r"mace\.trust: found false; needs true, if you trust the file",
        ),
        ({"metatomic": {"fil": "a"}}, r"metatomic\.fil: unknown key; did you mean `file`"),
        ({"lod": LODE}, r"descriptor\.lod: unknown key; did you mean `lode`\?"),
        ({"python": {"cal": "a:b"}}, r"descriptor\.python\.cal: unknown key; did you mean `call`"),
        ({"python": {"call": "a.b"}}, r"descriptor\.python\.call: .* text such as module:function"),
        ({"python": {"call": "a:b", "cutoff": -1}}, r"python\.cutoff: found -1; needs a distance"),
        ({"parts": {"x": {"sopa": {}}}}, r"parts\.x\.sopa: unknown key; did you mean `soap`"),
        ({"parts": {"x": {"parts": {}}}}, r"parts\.x\.parts: unknown key; .*belongs at"),
        ({"parts": {}}, r"descriptor\.parts: found .*; needs a mapping of a name"),
        ({"soap": HYPERS, "lode": LODE}, r"found soap, lode; needs exactly one of: soap, radial"),
        ({"features": {}}, r"descriptor\.features: .* needs a file for each set"),
        ({"features": "a.npy"}, r"descriptor\.features: found 'a\.npy'; needs a file for each"),
    ],
)
def test_sections_that_cannot_be_used(section, message):
    with pytest.raises(JobError, match=message):
        job(section)
