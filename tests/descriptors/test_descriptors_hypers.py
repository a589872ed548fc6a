import copy
import json

import pytest
from descriptors_cases import HYPERS, random_piece

from dlpr.descriptors.hypers import check_hypers
from dlpr.descriptors.soap import Soap
from dlpr.errors import JobError


def changed(path, value):
    """HYPERS with the value at a dotted path replaced, or the key taken out where it is None."""
    hypers = copy.deepcopy(HYPERS)
    *sections, last = path.split(".")
    section = hypers
    for name in sections:
        section = section[name]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return hypers


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cutof", {}, r"unknown key 'cutof' in descriptor\.soap; .* is 'cutoff' "),
        ("cutoff.raduis", 5, r"unknown key 'raduis' in descriptor\.soap\.cutoff; .* is 'radius' "),
        ("cutoff.smoothing.widht", 1, r"'widht' in descriptor\.soap\.cutoff\.smoothing.*'width' "),
        ("density.centre_atom_weight", 0, r"'centre_atom_weight' .* is 'center_atom_weight' "),
        ("basis.max_angle", 3, r"'max_angle' in descriptor\.soap\.basis; .* is 'max_angular' "),
        ("basis.radial.max_radal", 3, r"'max_radal' in descriptor\.soap\.basis\.radial"),
        ("density.type", "Gausian", r"density\.type 'Gausian' is unknown; .* is 'Gaussian' "),
        ("basis.type", None, r"basis lacks the key 'type'.* TensorProduct, Explicit"),
        ("density", None, r"lacks the key 'density'"),
        ("basis.radial.max_radial", None, r"Add descriptor\.soap\.basis\.radial\.max_radial"),
        ("cutoff", 5.0, r"descriptor\.soap\.cutoff is 5\.0; it must be a section"),
        ("cutoff.radius", -1, r"cutoff\.radius is -1; it must be a finite number greater than 0"),
        ("cutoff.radius", float("nan"), r"cutoff\.radius is nan; it must be a finite number"),
        ("cutoff.radius", True, r"cutoff\.radius is True; it must be"),
        ("density.width", "1e-1", r"density\.width is '1e-1'; .*write 1\.0e-8"),
        ("density.center_atom_weight", float("inf"), r"weight is inf; it must be a finite number"),
        ("basis.max_angular", 2.5, r"max_angular is 2\.5; it must be a whole number"),
        ("basis.radial.max_radial", -1, r"max_radial is -1; it must be a whole number"),
        ("basis.radial", {"type": "Tabulated", "points": 3}, r"points is 3; it must be a list"),
        ("basis", {"type": "Explicit", "by_angular": {"s": {}}}, r"by_angular is .* degrees"),
        ("basis", {"type": "Explicit", "by_angular": {0: {"type": "Gto"}}}, r"by_angular\.0 lacks"),
        ("basis.radial.radius", 2.0, r"featomic refuses .* GTO radius must be the same"),
        ("basis.radial.max_radial", 40, r"featomic refuses .* try with a lower max_radial"),
        ("density", {"type": "DiracDelta"}, r"featomic refuses .* not supported in SOAP"),
    ],
)
def test_bad_hyperparameters_are_named_and_nothing_is_printed(path, value, message, capfd):
    with pytest.raises(JobError, match=message):
        Soap(changed(path, value), [6])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("hypers", [None, [], "soap"])
def test_what_is_no_section_is_refused(hypers):
    with pytest.raises(JobError, match=r"^descriptor\.soap is "):
        check_hypers(hypers, "soap")


def test_equal_settings_have_one_form():
    written = changed("cutoff.radius", 3)
    written["basis"]["max_angular"] = 3.0
    written["density"] = {"width": 0.4, "scaling": None, "type": "Gaussian"}
    assert json.dumps(check_hypers(written, "soap")) == json.dumps(check_hypers(HYPERS, "soap"))
    assert check_hypers(check_hypers(HYPERS, "soap"), "soap") == check_hypers(HYPERS, "soap")
    assert check_hypers(HYPERS, "soap") == HYPERS


def test_all_sections_reach_featomic():
    piece = random_piece(8, [6], 0)
    scaling = {"type": "Willatt2018", "exponent": 2, "rate": 1, "scale": 2.0}
    reference = Soap(HYPERS, [6]).compute([piece])
    for path, value in [
        ("density.scaling", scaling),
        ("density.center_atom_weight", 0.5),
        ("cutoff.smoothing", {"type": "Step"}),
    ]:
        assert (Soap(changed(path, value), [6]).compute([piece]) != reference).any()


def test_an_explicit_basis_has_its_own_columns():
    radial = {2: {"type": "Gto", "max_radial": 1}, 0: {"type": "Gto", "max_radial": 2}}
    soap = Soap(changed("basis", {"type": "Explicit", "by_angular": radial}), [6])
    assert soap.columns["l"].tolist() == [0] * 6 + [2] * 3
    assert soap.compute([random_piece(8, [6], 0)]).all()
