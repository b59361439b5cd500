"""
Every test of transformers' that is skipped here, and why, by file. What transformers skips by itself is not listed.

A key is a test's name or a pattern of it, with its class in front where only one class skips it.
"""

from transformers import AutoImageProcessor

_NO_PADDING = "beginnings of captions are never padded or cut; CaptionerProcessorTargetTest runs it on the labels"
_OTHER_CHATS = (
    "expects `input_ids` with all that was said; a captioner has `decoder_input_ids` with the answer's beginning, "
    "and tests/models/test_chats.py covers chats"
)

_NO_GENERATION = "the source archive lacks transformers' generation tests; tests/test_generation.py covers generation"
_NO_ENCODER_LAYERS = "expects encoder layers; tests/test_transformer_reference.py covers a captioner without them"

NOT_APPLICABLE = {
    "test_modeling_rnn_captioner": {"test_generation_tester_mixin_inheritance": _NO_GENERATION},
    "test_modeling_transformer_captioner": {
        "test_generation_tester_mixin_inheritance": _NO_GENERATION,
        "VitTransformerTest::test_attention_outputs": _NO_ENCODER_LAYERS,
        "VitTransformerTest::test_hidden_states_output": _NO_ENCODER_LAYERS,
    },
    "test_image_processing_captioner": {
        "test_new_models_require_torchvision_backend": "one class has the torchvision backend as its base where "
        "torchvision is installed, and the PIL backend elsewhere; the test demands torchvision",
    },
    "test_processing_captioner": {
        "test_apply_chat_template_assistant_mask": _OTHER_CHATS,
        "test_apply_chat_template_image*": _OTHER_CHATS,
        "test_processor_text_has_no_visual": "chats without an image are refused, and one with an image fetches it "
        "from the Hub",
        "test_call_arguments_not_in_processor_kwargs": "transformers counts `text_target` among the tokenizer's "
        "settings; here it is an input, the captions to learn",
        "CaptionerProcessorPromptTest::test_kwargs_overrides_default_subprocessor_kwargs_0_images": _NO_PADDING,
        "CaptionerProcessorPromptTest::test_structured_kwargs_nested_from_dict_0_images": _NO_PADDING,
        "CaptionerProcessorPromptTest::test_subprocessor_defaults_preserved_by_kwargs_0_images": _NO_PADDING,
        "CaptionerProcessorPromptTest::test_unstructured_kwargs*_0_images": _NO_PADDING,
        "CaptionerProcessorTargetTest::test_valid_processor_kwargs_set": "looks for the settings in the module of the "
        "class, here this test's; CaptionerProcessorPromptTest runs it",
    },
    "test_tokenization_captioner": {
        "BpeTokenizerTest::test_rust_tokenizer_add_prefix_space_1": "TokenizersBackend keeps the pre-tokenizer of "
        "tokenizer.json whatever `add_prefix_space` says; only the classes of single models rebuild it",
    },
}

if getattr(AutoImageProcessor, "_backends", None):  # a placeholder that says what is missing
    NOT_APPLICABLE["test_image_processing_captioner"]["test_image_processor_save_load_with_autoimageprocessor"] = (
        "this version of transformers has AutoImageProcessor only where torchvision is installed (5.17 does)"
    )
