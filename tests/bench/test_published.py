"""Corrected splits: hashes, disjoint parts, fixes that say what changed, and the hold-out list with its missing comma."""

import hashlib
import json
import subprocess
import sys
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stimg.bench import published
from stimg.bench.published import UNKNOWN, check_hold_out, parse, published_split, published_splits

SPLITS = published_splits()
HESCAPE = [s for s in SPLITS if s.benchmark == "hescape"]
TASKS = [s for s in SPLITS if s.benchmark == "hest" and s.entry != "visium-hd-colon"]
ids = pytest.mark.parametrize("split", SPLITS, ids=lambda s: s.name)

# The hold-out list as Python reads it where the comma after TENX111 is missing, and what it would be with the comma.
AS_RELEASED = [
    *("TENX114", "TENX111NCBI884", "NCBI882", "NCBI866", "NCBI858", "NCBI883", "NCBI861", "NCBI857", "NCBI881", "NCBI783", "NCBI785"),
    *("TENX106", "TENX120", "TENX125", "TENX117", "TENX141", "TENX140", "TENX157", "TENX158", "Xenium_Prime_Ovarian_Cancer_FFPE_XRrun"),
]
WITH_COMMA = [name for listed in AS_RELEASED for name in (("TENX111", "NCBI884") if listed == "TENX111NCBI884" else (listed,))]


def text(benchmark: str) -> str:
    return files("stimg.bench").joinpath(f"data/{benchmark}.json").read_text(encoding="utf-8")


def parts(fold) -> dict[str, tuple[str, ...]]:
    return {"train": fold.train, "validation": fold.validation, "test": fold.test}


def clashes(division, groups) -> set[tuple[str, str]]:
    """Pairs of samples in two parts of one fold that are one sample or of one donor."""
    found = set()
    for fold in division.folds:
        named = [(part, sample) for part, samples in parts(fold).items() for sample in samples]
        for part, sample in named:
            for other_part, other in named:
                same_donor = groups[sample] != UNKNOWN and groups[sample] == groups[other]
                if part < other_part and (sample == other or same_donor):
                    found.add(tuple(sorted((sample, other))))
    return found


def samples_of(division) -> set[str]:
    return {sample for fold in division.folds for samples in parts(fold).values() for sample in samples}


class TestHash:
    @ids
    def test_is_the_sha256_of_the_canonical_content(self, split):
        document = json.loads(text(split.benchmark))
        entry = dict(document["entries"][split.entry])
        written = entry.pop("sha256")
        content = {
            "benchmark": split.benchmark,
            "citation": document["citation"],
            "entry": entry,
            "fixes": [fix for fix in document["fixes"] if split.entry in fix["entries"]],
            "name": split.entry,
            "version": document["version"],
        }
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        assert hashlib.sha256(canonical).hexdigest() == written == split.sha256

    def test_layout_and_order_of_keys_do_not_matter(self):
        document = json.loads(text("hest"))
        again = json.dumps({key: document[key] for key in reversed(document)}, indent=7)
        assert parse(again) == [s for s in SPLITS if s.benchmark == "hest"]

    @pytest.mark.parametrize("what", ["train", "donor", "held_out", "title", "fix", "version", "citation", "hash"])
    def test_an_edit_is_an_error(self, what):
        document = json.loads(text("hescape"))
        colon = document["entries"]["human-colon-panel"]
        if what == "train":
            colon["corrected"]["folds"][0]["train"].append("TENX111")
        elif what == "donor":
            colon["groups"]["TENX111"] = "somebody"
        elif what == "held_out":
            colon["published"]["held_out"].append("TENX111")
        elif what == "title":
            colon["title"] += " "
        elif what == "fix":
            next(fix for fix in document["fixes"] if fix["id"] == "gene-encoder-missing-comma")["affects"] = "Nothing."
        elif what == "hash":
            colon["sha256"] = "0" * 64
        else:
            document[what] = "2"
        with pytest.raises(ValueError, match=r"a\.json: the content of .* has the SHA-256 [0-9a-f]{64}, and .* damaged or was edited"):
            parse(json.dumps(document), origin="a.json")

    def test_half_a_file_is_an_error(self):
        with pytest.raises(ValueError, match="the text is not JSON"):
            parse(text("hest")[:5000])

    def test_damage_is_found_when_a_split_is_asked_for(self, monkeypatch, tmp_path):
        (tmp_path / "data").mkdir()
        for benchmark in published.BENCHMARKS:
            damaged = text(benchmark).replace("TENX111", "TENX112", 1)
            (tmp_path / "data" / f"{benchmark}.json").write_text(damaged, encoding="utf-8")
        monkeypatch.setattr(published, "package_files", lambda package: tmp_path)
        published._read.cache_clear()
        try:
            with pytest.raises(ValueError, match=r"stimg/bench/data/hescape\.json: the content of"):
                published_split("hest/IDC")
        finally:
            published._read.cache_clear()


class TestCorrected:
    @ids
    def test_parts_share_no_sample_and_no_donor(self, split):
        assert split.corrected.folds
        assert clashes(split.corrected, split.groups) == set()

    def test_published_parts_share_what_the_fixes_say(self):
        found = {s.entry: clashes(s.published, s.groups) for s in SPLITS if clashes(s.published, s.groups)}
        assert found == {
            "human-skin-panel": {("TENX117", "TENX117")},
            "human-lung-healthy-panel": {("NCBI856", "NCBI857"), ("NCBI860", "NCBI861"), ("NCBI881", "NCBI882"), ("NCBI858", "NCBI859")},
        }

    @ids
    def test_no_sample_is_lost(self, split):
        kept = samples_of(split.corrected)
        assert kept | set(split.excluded) == set(split.groups) >= samples_of(split.published)
        assert not kept & set(split.excluded)

    @ids
    def test_no_part_is_without_samples_or_repeats_one(self, split):
        for fold in split.corrected.folds:
            assert fold.train
            assert fold.test
            for samples in parts(fold).values():
                assert len(set(samples)) == len(samples)

    @pytest.mark.parametrize("split", HESCAPE, ids=lambda s: s.entry)
    def test_rule_of_hescape(self, split):
        # test stays; donors of the test leave validation and training, then donors of what is left of validation leave training
        (was,), (now,) = split.published.folds, split.corrected.folds

        def without(samples, others):
            donors = {split.groups[s] for s in others} - {UNKNOWN}
            return tuple(s for s in samples if s not in others and split.groups[s] not in donors)

        assert now.test == was.test
        assert now.validation == without(was.validation, now.test)
        assert now.train == without(was.train, now.test + now.validation)

    def test_one_sample_has_one_donor_everywhere(self):
        donors = {}
        for split in SPLITS:
            for sample, donor in split.groups.items():
                assert donors.setdefault(sample, donor) == donor

    @ids
    def test_fixes_of_splits_are_where_splits_differ(self, split):
        kinds = {fix.kind for fix in split.fixes}
        assert (split.published.folds != split.corrected.folds) == ("split" in kinds)
        scored = {s for fold in split.published.folds for s in fold.validation + fold.test}
        if split.benchmark == "hescape":
            assert bool(scored - set(split.published.held_out)) == ("pretraining" in kinds)
        else:
            assert split.published.held_out == split.corrected.held_out == ()

    def test_known_counts(self):
        # 72 samples in 29 folds, and the spots of each kidney fold: counted from the released files by others
        assert sum(len(s.groups) for s in TASKS) == 72
        assert sum(len(s.published.folds) for s in TASKS) == 29
        spots = dict(zip(range(1, 25), SPOTS_OF_INT, strict=True))
        folds = published_split("hest/CCRCC").published.folds
        assert [sum(spots[int(s.removeprefix("INT"))] for s in fold.test) for fold in folds] == [18371, 6569, 10756, 7122, 14748, 16654]
        prostate = published_split("hest/PRAD")
        assert len(prostate.groups) == 23
        assert len(set(prostate.groups.values())) == 2
        assert [len(fold.test) for fold in prostate.published.folds] == [8, 15]
        lung = published_split("hescape/human-lung-healthy-panel")
        assert (len(lung.groups), len(set(lung.groups.values()))) == (20, 15)
        assert published_split("hest/visium-hd-colon").excluded.keys() == {"TENX128"}

    def test_donors_of_hescape(self):
        people = 0
        for split in HESCAPE:
            donors = list(split.groups.values())
            people += (len(set(donors) - {UNKNOWN}) + donors.count(UNKNOWN)) if split.entry != "human-skin-panel" else 0
        assert people == 52  # 54 in the paper: three patients of the colon under one label, 15 of the lung under 19

    @pytest.mark.parametrize("task", TASKS, ids=lambda s: s.entry)
    def test_every_sample_of_a_task_is_tested_once(self, task):
        for division in (task.published, task.corrected):
            tested = [sample for fold in division.folds for sample in fold.test]
            assert sorted(tested) == sorted(task.groups)
            for fold in division.folds:
                assert set(fold.train) == set(task.groups) - set(fold.test)

    def test_slides_of_hest_that_hescape_trains_on(self):
        trained = {sample for split in HESCAPE for fold in split.published.folds for sample in fold.train}
        found = {task.entry: trained & set(task.groups) for task in TASKS if trained & set(task.groups)}
        fix = next(fix for task in TASKS for fix in task.fixes if fix.id == "hescape-training-slides")
        assert set(fix.entries) == set(found)
        for entry, samples in found.items():
            assert f"{entry} {', '.join(sorted(samples))}" in fix.what


SPOTS_OF_INT = (
    *(1084, 2580, 2007, 1349, 1186, 1678, 2374, 1949, 1696, 1983, 1439, 1451),
    *(4359, 4562, 4940, 3206, 3585, 4915, 4948, 4860, 4975, 3829, 4755, 4510),
)
"""Spots of INT1 to INT24 in the released files."""


class TestFixes:
    @pytest.mark.parametrize("benchmark", published.BENCHMARKS)
    def test_each_refers_to_entries_and_says_everything(self, benchmark):
        document = json.loads(text(benchmark))
        assert set(document) == {"benchmark", "version", "citation", "fixes", "entries"}
        names = [fix["id"] for fix in document["fixes"]]
        assert len(set(names)) == len(names)
        for fix in document["fixes"]:
            assert set(fix) == {"id", "kind", "entries", "what", "why", "correction", "affects", "certainty", "source"}
            assert fix["entries"]
            assert set(fix["entries"]) <= set(document["entries"]), fix["id"]
            assert fix["kind"] in published.KINDS
            assert fix["certainty"] in published.CERTAINTIES
            assert all(fix[key].endswith(".") for key in ("what", "why", "correction", "affects", "source"))
        for entry in document["entries"].values():
            assert set(entry) == {"title", "source", "published", "corrected", "excluded", "groups", "sha256"}
            for division in (entry["published"], entry["corrected"]):
                assert set(division) == {"folds", "held_out"}
                assert all(set(fold) == {"name", "train", "validation", "test"} for fold in division["folds"])

    def test_objects_cannot_be_changed(self):
        split = published_split("hest/COAD")
        with pytest.raises(AttributeError):
            split.title = ""
        with pytest.raises(TypeError):
            split.groups["TENX111"] = "somebody"

    def test_unknown_name(self):
        with pytest.raises(
            ValueError, match=r"no published split named 'hescape/colon-panel'. Did you mean 'hescape/human-colon-panel'\? Known: "
        ):
            published_split("hescape/colon-panel")

    def test_loads_without_the_heavy_libraries(self):
        code = "import sys, stimg.bench.published as p; p.published_splits(); print({'torch', 'anndata', 'pandas', 'numpy'} & set(sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


class TestPretrainingOfHescape:
    every = frozenset(sample for split in HESCAPE for sample in split.groups)
    needed = tuple(dict.fromkeys(s for split in HESCAPE for fold in split.published.folds for s in fold.validation + fold.test))

    def test_what_the_released_list_did_not_hold_out(self):
        leaked = {}
        for split in HESCAPE:
            scored = {s for fold in split.published.folds for s in fold.validation + fold.test}
            assert set(split.published.held_out) == set(split.groups) & set(AS_RELEASED)
            if scored - set(split.published.held_out):
                leaked[split.entry] = scored - set(split.published.held_out)
        assert leaked == {
            "human-colon-panel": {"TENX111"},
            "human-lung-healthy-panel": {"NCBI884"},
            "human-multi-tissue-panel": {"TENX116", "TENX122", "TENX124"},
        }

    @pytest.mark.parametrize("split", HESCAPE, ids=lambda s: s.entry)
    def test_corrected_holds_out_everything_that_is_not_trained_on(self, split):
        (fold,) = split.corrected.folds
        assert set(split.corrected.held_out) == set(fold.validation) | set(fold.test) | set(split.excluded)
        assert not set(split.corrected.held_out) & set(fold.train)

    def test_replay_of_the_missing_comma(self):
        with pytest.raises(
            ValueError,
            match=r"^'TENX111NCBI884' is no sample; did a comma get lost between 'TENX111' and 'NCBI884'\? It holds nothing out\.",
        ):
            check_hold_out(AS_RELEASED, self.every)

    def test_replay_of_the_samples_that_were_not_listed(self):
        assert check_hold_out(WITH_COMMA, self.every) == tuple(WITH_COMMA)
        with pytest.raises(ValueError, match=r"lacks 3 of the samples that it must hold out: \['TENX124', 'TENX116', 'TENX122'\]"):
            check_hold_out(WITH_COMMA, self.every, needed=self.needed)

    def test_the_corrected_list_passes(self):
        corrected = [sample for split in HESCAPE for sample in split.corrected.held_out]
        assert check_hold_out(corrected, self.every, needed=self.needed) == tuple(corrected)


class TestCheckHoldOut:
    samples = ("TENX11", "TENX111", "TENX114", "NCBI882", "NCBI884", "A")

    def test_returns_the_names_in_their_order(self):
        assert check_hold_out(iter(["NCBI884", "TENX111"]), set(self.samples)) == ("NCBI884", "TENX111")
        assert check_hold_out([], self.samples) == ()

    def test_a_sample_whose_name_is_two_names_is_a_sample(self):
        assert check_hold_out(["A1B1"], ["A1", "B1", "A1B1"]) == ("A1B1",)

    def test_several_lost_commas(self):
        with pytest.raises(
            ValueError, match=r"between 'NCBI882' and 'TENX114' and 'A'\? 'NCBI884TENX11' is no sample; did .* They hold nothing out"
        ):
            check_hold_out(["NCBI882TENX114A", "TENX111", "NCBI884TENX11"], self.samples)

    def test_a_shorter_first_name_where_the_longest_leads_nowhere(self):
        with pytest.raises(ValueError, match="between 'AB' and 'CD'"):
            check_hold_out(["ABCD"], ["AB", "ABC", "CD"])

    def test_a_wrong_name(self):
        with pytest.raises(ValueError, match="'TENX112' is no sample; close names are 'TENX1"):
            check_hold_out(["TENX112"], self.samples)
        with pytest.raises(ValueError, match="'kidney' is no sample, and none has a name like it"):
            check_hold_out(["kidney"], self.samples)
        with pytest.raises(ValueError, match="'' is no sample, and none"):
            check_hold_out([""], self.samples)

    @pytest.mark.parametrize("arguments", [("TENX111", ["TENX111"]), (["TENX111"], "TENX111")])
    def test_one_string_is_no_list(self, arguments):
        with pytest.raises(TypeError, match=r"is the string 'TENX111'; wanted several names. Write \['TENX111'\] for one"):
            check_hold_out(*arguments)
        with pytest.raises(TypeError, match="`needed` is the string"):
            check_hold_out([], [], needed="TENX111")

    @settings(max_examples=60, deadline=None)
    @given(st.sets(st.text("ABC12", min_size=1, max_size=5), min_size=2, max_size=8), st.data())
    def test_any_two_joined_names_are_noticed(self, names, data):
        first, second = data.draw(st.permutations(sorted(names)))[:2]
        if first + second in names:
            return
        with pytest.raises(ValueError, match="did a comma get lost"):
            check_hold_out([first + second], names)
