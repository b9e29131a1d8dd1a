import pytest
from tokenizers import AddedToken

from gradfiltering.data.tokenizer_hash import hash_tokenizer


class TestSlowTokenizers:
    """A tokenizer written in Python has no file of rules; whatever changes its ids must change its hash."""

    @pytest.fixture(scope="class")
    def models(self, tmp_path_factory):
        """Two sentencepiece models of the same pieces, one of them with other scores."""
        from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

        folder = tmp_path_factory.mktemp("pieces")
        text = folder / "text.txt"
        text.write_text("hello world this is text\nthe quick brown fox jumps over lazy dogs\n" * 50)
        SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(folder / "one"),
            vocab_size=60,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString((folder / "one.model").read_bytes())
        for piece in model.pieces[3:]:
            piece.score = -1.0 - piece.score
        (folder / "other.model").write_bytes(model.SerializeToString())
        return folder

    @pytest.fixture
    def load(self, models):
        from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

        def build(name="one", kind=SentencePieceBackend, **options):
            return kind(
                vocab_file=str(models / f"{name}.model"),
                bos_token="<s>",
                eos_token="</s>",
                unk_token="<unk>",
                **options,
            )

        return build

    def test_the_same_tokenizer_elsewhere_has_the_same_hash(self, load, models, tmp_path):
        (tmp_path / "one.model").write_bytes((models / "one.model").read_bytes())
        elsewhere = type(load())(
            vocab_file=str(tmp_path / "one.model"), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
            padding_side="left", model_max_length=77,
        )  # fmt: skip
        assert not load().is_fast and hash_tokenizer(load()) == hash_tokenizer(elsewhere) == hash_tokenizer(load())

    def test_scores_tokens_class_and_options_count(self, load):
        plain = load()
        other = load("other")
        assert plain.get_vocab() == other.get_vocab(), "the models should differ in nothing but scores"
        added = load()
        added.add_tokens(["<|mark|>"])
        stripping = load()
        stripping.add_tokens([AddedToken("<|mark|>", lstrip=True)])
        renamed = load(kind=type("Other", (type(plain),), {}))
        sampling = load(sp_model_kwargs={"enable_sampling": True})
        hashes = {hash_tokenizer(one) for one in (plain, other, added, stripping, renamed, sampling)}
        assert len(hashes) == 6, "two tokenizers that give other ids share a hash"
