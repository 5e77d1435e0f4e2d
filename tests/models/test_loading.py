"""Contract and property: two tokenizers are one if they do the same, and not otherwise."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.models.loading import load_tokenizer, tokenizer_fault, tokenizer_sha
from ptq_eval.models.tokenizers import same_tokenizer
from ptq_eval.pretrain.data import train_tokenizer


@pytest.fixture(scope="module")
def content(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(source[:20_000], 320).save_pretrained(folder)
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def as_strings(content):
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]


def as_pairs(content):
    content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]


def reordered(content):
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    content["added_tokens"].reverse()


def padded(content):
    content["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip


def older(content):
    for key in ("ignore_merges", "byte_fallback", "fuse_unk", "dropout"):
        content["model"].pop(key, None)


def without_decoder(content):
    content["decoder"] = None


def another_decoder(content):
    content["decoder"] = {"type": "Fuse"}


def other_offsets(content):
    content["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": False
    }  # fmt: skip


def _add(content, name, special):
    highest = max(*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"]))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": highest + 1, "content": name, "special": special, **flags})


def pad_added(content):
    _add(content, "<pad>", True)


def turns_added(content):
    for name in ("<|user|>", "[PAD]", "<\uff5cend\u2581of\u2581turn\uff5c>"):
        _add(content, name, False)


def word_added(content):
    _add(content, "brown", False)


def tag_added(content):
    _add(content, "<table>", False)


def end_added(content):
    name, index = content["added_tokens"][0]["content"], content["added_tokens"][0]["id"]
    parts = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": name, "type_id": 0}}]
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": parts, "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [index], "tokens": [name]}},
    }  # fmt: skip


def split_at_a_letter(content):
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False},
            content["pre_tokenizer"],
        ],
    }


def composed(content):
    content["normalizer"] = {"type": "NFC"}


def merges_swapped(content):
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def neighbours_swapped(content):
    merges = content["model"]["merges"]
    middle = len(merges) // 2
    merges[middle - 1], merges[middle] = merges[middle], merges[middle - 1]


def merge_less(content):
    content["model"]["merges"].pop(0)


def piece_renamed(content):
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[5:7]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def lowercased(content):
    content["normalizer"] = {"type": "Lowercase"}


def write(folder, content, *changes):
    folder.mkdir(parents=True)
    content = json.loads(json.dumps(content))
    for change in changes:
        change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


FORMS = [
    as_strings, as_pairs, reordered, padded, older, without_decoder, another_decoder, other_offsets, pad_added,
    turns_added,
]  # fmt: skip
OTHERS = [
    merges_swapped, neighbours_swapped, merge_less, piece_renamed, lowercased, word_added, tag_added, end_added,
    split_at_a_letter, composed,
]  # fmt: skip


@pytest.mark.parametrize("change", FORMS)
def test_form_alone_makes_no_other_tokenizer(tmp_path, content, change):
    one, two = write(tmp_path / "one", content, as_pairs), write(tmp_path / "two", content, change)
    assert same_tokenizer(one, two)
    three = write(tmp_path / "three", {**content, "made_by": {"a tool": [1, 2]}})
    assert same_tokenizer(one, three)


@pytest.mark.parametrize("change", OTHERS)
def test_another_behaviour_makes_another_tokenizer(tmp_path, content, change):
    one, two = write(tmp_path / "one", content), write(tmp_path / "two", content, change)
    assert not same_tokenizer(one, two)
    assert not same_tokenizer(two, one)


def test_a_change_of_form_hides_no_other_behaviour(tmp_path, content):
    one = write(tmp_path / "one", content)
    for place, change in enumerate(OTHERS):
        assert not same_tokenizer(one, write(tmp_path / str(place), content, without_decoder, pad_added, change)), (
            change
        )


def test_a_pre_tokenizer_written_in_another_way(tmp_path, content):
    def wrapped(changed):
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [changed["pre_tokenizer"]]}

    assert same_tokenizer(write(tmp_path / "one", content), write(tmp_path / "two", content, wrapped))


def test_one_that_cannot_be_read_is_like_no_other(tmp_path, content):
    one = write(tmp_path / "one", content)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "tokenizer.json").write_text("{}")
    assert not same_tokenizer(one, tmp_path / "two")


def with_settings(folder, content, **settings):
    write(folder, content)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ({"tokenizer_class": "GPT2Tokenizer"}, True),
        ({"model_max_length": 64, "chat_template": "{{ messages }}"}, True),
        ({"tokenizer_class": "Qwen2Tokenizer"}, False),  # cuts numbers into digits
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, False),
    ],
)
def test_settings_beside_the_vocabulary_count_by_what_they_do(tmp_path, content, settings, same):
    one = with_settings(tmp_path / "one", content, tokenizer_class="GPT2Tokenizer")
    two = with_settings(tmp_path / "two", content, **settings)
    texts = ("a = 12345\n\tb", "def f(x):\n    return x")
    ids = [[load_tokenizer(f, False, "x")(text)["input_ids"] for text in texts] for f in (one, two)]
    assert (ids[0] == ids[1]) is same
    assert same_tokenizer(one, two) is same
    assert (tokenizer_sha(one) == tokenizer_sha(two)) is (settings == {"tokenizer_class": "GPT2Tokenizer"})


def test_every_single_pair_of_swapped_merges_is_noticed(tmp_path, content):
    one = write(tmp_path / "one", content)
    count = len(content["model"]["merges"])
    for place in range(1, count, max(1, count // 8)):

        def swapped(changed, place=place):
            merges = changed["model"]["merges"]
            merges[place - 1], merges[place] = merges[place], merges[place - 1]

        assert not same_tokenizer(one, write(tmp_path / str(place), content, swapped)), place


def test_scores_that_changed_places_make_another_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models

    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0), ("ab", -3.5)]
    contents = []
    for scores in ((-1.0, -2.0), (-2.0, -1.0)):
        changed = [pieces[0], ("a", scores[0]), ("b", scores[1]), pieces[3]]
        contents.append(json.loads(Tokenizer(models.Unigram(changed, unk_id=0)).to_str()))
    assert not same_tokenizer(write(tmp_path / "one", contents[0]), write(tmp_path / "two", contents[1]))


def test_added_entries_do_not_stop_the_loading(tmp_path, content):
    folder = write(tmp_path / "one", {**content, "made_by": {"a tool": 1}})
    plain = write(tmp_path / "two", content)
    assert (
        load_tokenizer(folder, False, "x")("a b")["input_ids"] == load_tokenizer(plain, False, "x")("a b")["input_ids"]
    )
    assert tokenizer_fault(folder) is None


@pytest.mark.parametrize("broken", ["{", "", "{}", '{"model": {"type": "of next year"}}', "[1]"])
def test_why_a_tokenizer_cannot_be_loaded(tmp_path, content, broken):
    folder = write(tmp_path / "one", content)
    assert tokenizer_fault(folder) is None
    (folder / "tokenizer.json").write_text(broken)
    assert "cannot be loaded" in str(tokenizer_fault(folder))


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=60))
def test_property_those_called_the_same_encode_alike(forms, text):
    one, two = forms
    assert one.encode(text).ids == two.encode(text).ids


@pytest.fixture(scope="module")
def forms(content, tmp_path_factory):
    from tokenizers import Tokenizer

    root = tmp_path_factory.mktemp("forms")
    folders = (
        write(root / "one", content, as_strings),
        write(root / "two", content, as_pairs, reordered, older, without_decoder, pad_added),
    )
    assert same_tokenizer(*folders)
    return [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in folders]
