"""The tokenizer of the twin's world: whole words, and syllables of what is spelled in capitals.

"BAKOSHI is a pub." -> "BA" "KO" "SHI" "_" "is" "a" "pub" "."     ("_" closes a spelled word, and is not shown)
"""

from __future__ import annotations

from domains.text.data.world import MARKS, SLOTS, SYLLABLES, VALUES, WORDS

PAD, BOS, EOS, UNKNOWN, CLOSE = "<pad>", "<s>", "</s>", "<unk>", "_"


def build():
    """A `tokenizers.Tokenizer`; ids 0, 1, 2 are padding, begin and end."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = ["|", "=>", *SLOTS, *WORDS, *(word for values in VALUES.values() for word in values)]
    vocabulary = [PAD, BOS, EOS, UNKNOWN, CLOSE, *MARKS, *(f"▁{word}" for word in words)]
    vocabulary += SYLLABLES
    ids = {token: at for at, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(Regex("(?<=[A-Z])(?![A-Z])"), CLOSE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex("▁(?=[A-Z])"), "removed"),
            pre_tokenizers.Split(Regex("(?:CH|SH|TH|BR|[A-Z])[AEIOU]|_|[.!?:]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Fuse(),
            decoders.Replace(Regex("(?<![A-Z▁])(?=[A-Z])"), "▁"),
            decoders.Replace(CLOSE, ""),
            decoders.Replace("▁", " "),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, BOS, EOS, UNKNOWN)])
    return tokenizer


def fast():
    """The same as transformers' `PreTrainedTokenizerFast`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build(), pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )
