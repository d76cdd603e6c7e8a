from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import files
from tasks.e2e import data as e2e_data
from tasks.e2e import slot_errors
from tasks.e2e.data import Example, data_fingerprint, encode, group_by_context, load_builtin, load_e2e, pretokenise

ROW = '"name[Ochre], area[riverside]"'
SMALL = f'mr,ref\n{ROW},Ochre is by the river. \n{ROW},"Isn\'t\r\nOchre?"\n'


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every place of its own below tmp_path, all empty; E2E's test file is SMALL; no server is reached."""
    folders = {name: tmp_path / name for name in ("chosen", "cache", "shared")}
    folders["chosen"].mkdir()
    monkeypatch.delenv("LORA_DATA_DIR", raising=False)
    monkeypatch.setattr(files, "CACHE", folders["cache"])
    monkeypatch.setattr(files, "SHARED", folders["shared"])
    monkeypatch.setattr(e2e_data, "RELEASE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(e2e_data.FILES, "test", ("testset_w_refs.csv", hashlib.sha256(SMALL.encode()).hexdigest()))
    return folders


def put(folder: Path, content: str = SMALL) -> Path:
    path = folder / "e2e" / "testset_w_refs.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode())
    return path


@pytest.fixture
def release(monkeypatch, places):
    """A release on localhost: what it answers is `release.body`, what was asked of it `release.asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(server.announced or len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.announced, server.asked = SMALL.encode(), None, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(e2e_data, "RELEASE_URL", f"http://127.0.0.1:{server.server_port}/e2e")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level stand-in: every byte a token, no merges, so that ids can be read off the text."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary | {"<|endoftext|>": 256}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


# --- the official LoRA data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "official"), [("dev", "valid"), ("test", "test")])
def test_lora_protocol_reproduces_the_official_files(shared_data, split, official):
    text = (shared_data / "e2e_lora_format" / f"{official}.txt").read_text(encoding="utf-8")
    theirs = [line.strip().split("||") for line in text.splitlines()]
    ours = load_e2e(split, "lora", shared_data)
    assert [example.context for example in ours] == [context for context, _ in theirs]
    references = [(example.reference, reference) for example, (_, reference) in zip(ours, theirs, strict=True)]
    assert sum(our == their for our, their in references) / len(references) >= 0.98
    assert all("".join(our.split()) == "".join(their.split()) for our, their in references)


@pytest.mark.parametrize(
    ("split", "rows", "contexts"), [("train", 42_061, 4_862), ("dev", 4_672, 547), ("test", 4_693, 630)]
)
def test_splits_have_the_published_sizes(shared_data, split, rows, contexts):
    examples = load_e2e(split, "challenge", shared_data)
    grouped = group_by_context(examples)
    assert (len(examples), len(grouped)) == (rows, contexts)
    assert sum(len(item.references) for item in grouped) == rows


def test_the_protocols_group_the_real_test_set_alike(shared_data):
    lora, challenge = (group_by_context(load_e2e("test", protocol, shared_data)) for protocol in e2e_data.PROTOCOLS)
    assert [item.mr for item in lora] == [item.mr for item in challenge]
    assert [len(item.references) for item in lora] == [len(item.references) for item in challenge]


def test_challenge_protocol_keeps_the_text_with_its_quoted_line_break(shared_data):
    broken = [example for example in load_e2e("train", "challenge", shared_data) if "\n" in example.reference]
    assert len(broken) == 2
    assert all(example.context == example.mr and "The Bakers.\r\n  This" in example.reference for example in broken)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        ("Fitzbillies, a family-friendly pub.", "Fitzbillies , a family - friendly pub ."),
        ("It's £20-25, isn't it?", "It 's £ 20 - 25 , is n't it ?"),
        ("You'll say we've CAN'T it", "You 'll say we 've CA N'T it"),
        ("near 'The Mill' ... from £10.50", "near ' The Mill ' ... from £ 10.50"),
        ("Café Rouge\r\n  is Here", "Café Rouge is Here"),
        ("nt hunt", "nt hunt"),
    ],
)
def test_pretokenise_sets_punctuation_and_contractions_apart_and_keeps_case(raw, tokens):
    assert pretokenise(raw) == tokens
    assert pretokenise(tokens) == tokens


def test_lora_context_renames_slots_and_spaces_prices():
    mr = "name[Blue Spice], eatType[pub], priceRange[£20-25], familyFriendly[yes], near[Café Rouge]"
    expected = "name : Blue Spice | Type : pub | price : £ 20 - 25 | family friendly : yes | near : Café Rouge"
    assert e2e_data.to_context(mr, "lora") == expected
    assert e2e_data.to_context("name[Ochre], priceRange[more than £30]") == "name : Ochre | price : more than £ 30"
    assert e2e_data.to_context(mr, "challenge") == mr


def test_parse_mr_keeps_order_and_values_with_commas():
    assert slot_errors.parse_mr("near[Café, Bar and Co], name[X]") == {"near": "Café, Bar and Co", "name": "X"}


@pytest.mark.parametrize(
    "mr",
    [
        "",
        "Blue Spice",
        "name[Blue Spice], area",
        "name[Blue Spice], area[]",
        "name[Blue Spice] area[riverside]",
        "name[Blue Spice], area[riverside",
        "name[Blue Spice], colour[red]",
        "name[Blue Spice], name[Aromi]",
        "name : Blue Spice | area : riverside",
        "name[Blue Spice], near[-]",
        None,
    ],
)
@pytest.mark.parametrize("protocol", e2e_data.PROTOCOLS)
def test_malformed_meaning_representation_is_refused(mr, protocol):
    with pytest.raises(ValueError, match=r"malformed meaning representation .*expected `slot\[value\]"):
        e2e_data.to_context(mr, protocol)


def test_unknown_split_and_protocol_are_refused(places):
    put(places["chosen"])
    with pytest.raises(ValueError, match="unknown split 'valid': expected one of train, dev, test"):
        load_e2e("valid", data_dir=places["chosen"])
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        load_builtin("valid")
    with pytest.raises(ValueError, match="unknown protocol 'raw': expected one of challenge, lora"):
        load_e2e("test", "raw", places["chosen"])


# --- grouping, encoding, fingerprint ----------------------------------------------------------------------------------


def test_grouping_keeps_first_occurrences_in_order_and_all_references():
    rows = [Example("m2", "b", "x"), Example("m1", "a", "y"), Example("m2", "b", "z"), Example("m2", "b", "x")]
    grouped = group_by_context(rows)
    assert [(item.mr, item.context, item.references) for item in grouped] == [
        ("m2", "b", ["x", "z", "x"]),
        ("m1", "a", ["y"]),
    ]


def test_only_the_completion_and_its_final_end_token_are_learned(tokenizer):
    row = encode(Example("m", "a : é", "Hi ."), tokenizer)
    context, completion = ([*tokenizer.encode(text), 256] for text in ("a : é", " Hi ."))
    assert row["input_ids"] == context + completion
    assert row["labels"] == [-100] * 7 + completion
    assert len(context) == 7 and row["labels"][-1] == 256


def test_encoding_is_cut_at_the_right_but_never_to_the_bare_context(tokenizer):
    example = Example("m", "abc", "Hello there")
    whole = encode(example, tokenizer)
    cut = encode(example, tokenizer, max_length=6)
    assert cut == {key: values[:6] for key, values in whole.items()}
    assert cut["labels"][-1] != -100
    assert encode(example, tokenizer, max_length=len(whole["input_ids"])) == whole
    with pytest.raises(ValueError, match=r"max_length 4 leaves no room for a reference.*take 4 tokens"):
        encode(example, tokenizer, max_length=4)


def test_encoding_with_gpt2s_tokenizer_is_the_official_one(shared_data):
    gpt2 = PreTrainedTokenizerFast(
        tokenizer_file=str(shared_data / "gpt2_tokenizer" / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    row = encode(Example("m", "name : Blue Spice", "A pub ."), gpt2)
    assert row["input_ids"] == [3672, 1058, 4518, 43537, 50256, 317, 2240, 764, 50256]
    assert row["labels"] == [-100] * 5 + [317, 2240, 764, 50256]


def test_fingerprint_tells_every_field_and_the_order_apart():
    rows = [Example("m", "c", "r"), Example("m", "c", "s")]
    others = [rows[::-1], rows[:1], [Example("m", "cr", ""), rows[1]], [Example("n", "c", "r"), rows[1]]]
    assert data_fingerprint(rows) == hashlib.sha256(b"m\0c\0r\0m\0c\0s\0").hexdigest()[:16]
    assert len({data_fingerprint(other) for other in [rows, *others]}) == 5


# --- where the data come from -----------------------------------------------------------------------------------------


def test_first_place_that_has_the_file_wins(places, monkeypatch, release, tmp_path):
    named = tmp_path / "named"
    found = []
    monkeypatch.setattr(e2e_data, "_read", lambda path, _: found.append(path) or [])
    load_e2e("test")
    put(places["shared"])
    places["cache"].rename(tmp_path / "emptied")
    load_e2e("test")
    put(places["cache"])
    load_e2e("test")
    put(places["chosen"])
    monkeypatch.setenv("LORA_DATA_DIR", str(places["chosen"]))
    load_e2e("test")
    put(named)
    load_e2e("test", data_dir=named)
    order = [path.relative_to(tmp_path).parts[0] for path in found]
    assert order == ["cache", "shared", "cache", "chosen", "named"]
    assert release.asked == ["/e2e/testset_w_refs.csv"]


def test_a_folder_without_the_file_passes_on_to_the_next_place(places):
    put(places["shared"])
    assert [example.reference for example in load_e2e("test", "lora", places["chosen"])] == [
        "Ochre is by the river .",
        "Is n't Ochre ?",
    ]


def test_download_is_cached_and_asked_for_once(places, release):
    first, second = load_e2e("test", "challenge"), load_e2e("test", "challenge")
    assert first == second
    assert first[1] == Example("name[Ochre], area[riverside]", "name[Ochre], area[riverside]", "Isn't\r\nOchre?")
    assert first[0].reference == "Ochre is by the river."
    assert release.asked == ["/e2e/testset_w_refs.csv"]
    assert [path.name for path in (places["cache"] / "e2e").iterdir()] == ["testset_w_refs.csv"]


@pytest.mark.parametrize(
    ("body", "announced", "error"),
    [
        (SMALL.replace("river", "sea"), None, "expected SHA-256 .* found "),
        ("<html>Sign in</html>", None, "expected the columns 'mr,ref', found '<html>Sign in</html>'"),
        (SMALL[:40], len(SMALL), "was cut off: expected 109 bytes, found 40"),  # the connection ends early
    ],
)
def test_bad_download_is_refused_and_leaves_no_file(places, release, body, announced, error):
    release.body, release.announced = body.encode(), announced
    with pytest.raises(ValueError, match=error):
        load_e2e("test")
    assert not places["cache"].exists()


def test_without_any_place_the_error_names_them_all_and_what_to_do(places):
    with pytest.raises(FileNotFoundError, match="in none of the places tried") as raised:
        load_e2e("test", data_dir=places["chosen"])
    message = str(raised.value)
    for place in places.values():
        assert str(place / "e2e" / "testset_w_refs.csv") in message
    assert "http://127.0.0.1:9/testset_w_refs.csv (" in message
    assert "LORA_DATA_DIR" in message and "github.com/tuetschek/e2e-dataset" in message and "quick" in message


def test_missing_data_folder_is_an_error_even_if_another_place_has_the_file(places, monkeypatch, tmp_path):
    put(places["cache"])
    absent = tmp_path / "absent"
    with pytest.raises(FileNotFoundError, match=r"data_dir is .*absent, which is not a folder.*e2e/testset_w_refs.csv"):
        load_e2e("test", data_dir=absent)
    monkeypatch.setenv("LORA_DATA_DIR", str(absent))
    with pytest.raises(FileNotFoundError, match=r"LORA_DATA_DIR is .*absent, which is not a folder"):
        load_e2e("test")
    monkeypatch.delenv("LORA_DATA_DIR")
    assert len(load_e2e("test")) == 2


def test_csv_with_other_columns_is_refused_by_its_columns(places):
    put(places["chosen"], SMALL.replace("mr,ref", "MR,output"))
    with pytest.raises(ValueError, match=r"testset_w_refs.csv: expected the columns 'mr,ref', found 'MR,output'"):
        load_e2e("test", data_dir=places["chosen"])


def test_quoted_header_of_the_released_test_set_is_the_same_header(places, monkeypatch):
    quoted = SMALL.replace("mr,ref", '"mr","ref"')
    monkeypatch.setitem(e2e_data.FILES, "test", ("testset_w_refs.csv", hashlib.sha256(quoted.encode()).hexdigest()))
    put(places["chosen"], quoted)
    assert len(load_e2e("test", data_dir=places["chosen"])) == 2


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (b"name[a],\xff", "'utf-8' codec can't decode"),
        (b"name[a]", "row 1 with 1 columns"),
        (b"name[a],b\n\n", "row 2 with 0 columns"),
        (b"name[a],b,c", "row 1 with 3 columns"),
        (b"", "no row"),
        (b'name[a],"' + b"b" * 200_000, "field larger than field limit"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_rows_that_are_none_are_refused_in_words_whatever_the_checksum(places, monkeypatch, row, found):
    content = b"mr,ref\n" + row
    monkeypatch.setitem(e2e_data.FILES, "test", ("testset_w_refs.csv", hashlib.sha256(content).hexdigest()))
    put(places["chosen"]).write_bytes(content)
    with pytest.raises(ValueError, match=f"testset_w_refs.csv: expected rows of mr,ref in UTF-8, found {found}"):
        load_e2e("test", data_dir=places["chosen"])


@pytest.mark.parametrize("place", ["chosen", "cache", "shared"])
def test_csv_with_another_checksum_is_refused_wherever_it_lies(places, place):
    changed = SMALL.replace("river.", "river!")
    put(places[place], changed)
    digests = [hashlib.sha256(content.encode()).hexdigest() for content in (SMALL, changed)]
    with pytest.raises(ValueError, match="expected SHA-256 {}, found {}; replace it".format(*digests)):
        load_e2e("test", data_dir=places["chosen"])


# --- built-in data ----------------------------------------------------------------------------------------------------


def test_builtin_data_go_through_the_same_protocols():
    raw, lora = load_builtin("dev", "challenge"), load_builtin("dev", "lora")
    assert len(raw) == len(lora) > 0
    assert all(example.context == example.mr for example in raw)
    for plain, tokenised in zip(raw, lora, strict=True):
        assert tokenised.mr == plain.mr
        assert tokenised.context == e2e_data.to_context(plain.mr)
        assert tokenised.reference == pretokenise(plain.reference)
    assert all(example.context.startswith("name : ") for example in lora)
    assert any("family - friendly" in example.reference for example in lora)
