"""Stage 2: train the whole model, or LoRA adapters, on conversations and the synthetic image vectors of their captions.

accelerate launch recipes/finetune.py --config recipes/demo/finetune.yaml \
    --model_name_or_path STAGE_1_OUTPUT --dataset DATASET --output_dir OUTPUT
"""

from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config, get_quantization_config

import unicorn_hf  # noqa: F401  (adds Unicorn to the Auto classes)
from unicorn_hf.errors import one_sentence_errors
from unicorn_hf.storage import read_dataset
from unicorn_hf.training import FinetuneArguments, ImageEmbedsCollator, freeze_vision_tower, tokenize_conversations
from unicorn_hf.training.trainer import UnicornTrainer


def main(data_args: FinetuneArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    # Data
    dataset = read_dataset(data_args.dataset, name=data_args.dataset_config, split=data_args.dataset_split)

    # Model
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
    )
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
    if not model_args.use_peft:  # which freezes all that it does not train, quantised weights included
        freeze_vision_tower(model)

    # Training
    tokens = tokenize_conversations(dataset, processor, max_length=training_args.max_length)
    training_args.remove_unused_columns = False
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = UnicornTrainer(
        model=model,
        args=training_args,
        data_args=data_args,
        train_dataset=tokens.with_format("numpy"),
        data_collator=ImageEmbedsCollator(processor.tokenizer.pad_token_id),
        processing_class=processor,
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # Saving
    trainer.save_model(training_args.output_dir)


if __name__ == "__main__":
    with one_sentence_errors():
        main(*TrlParser((FinetuneArguments, SFTConfig, ModelConfig)).parse_args_and_config())
