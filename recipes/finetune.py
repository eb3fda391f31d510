"""Stage 2: train the whole model, or LoRA adapters, on conversations and the synthetic image vectors of their captions.

accelerate launch recipes/finetune.py --config recipes/demo/finetune.yaml \
    --model_name_or_path STAGE_1_OUTPUT --dataset DATASET --output_dir OUTPUT
"""

from functools import partial

import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from transformers import AutoProcessor
from trl import ModelConfig, SFTConfig

from unicorn_hf.errors import one_sentence_errors
from unicorn_hf.training import (
    FinetuneArguments,
    Mixture,
    UnicornCollator,
    UnicornTrainer,
    check_options,
    check_trackers,
    freeze_vision_tower,
    is_padding_free,
    load_model_to_finetune,
    loading,
    new_adapter,
    parse_options,
    set_released_prompt,
    set_tokenizer_options,
    stop_at_the_end_of_a_turn,
    tokenize_conversations,
)


def main(data_args: FinetuneArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    # Data
    check_options(data_args, training_args, model_args)
    check_trackers(training_args.report_to)
    data = Mixture.read(data_args)

    # Model
    name, trust_remote_code = model_args.model_name_or_path, training_args.trust_remote_code
    model = load_model_to_finetune(model_args, trust_remote_code=trust_remote_code)
    with loading(name, model_args.model_revision):
        processor = AutoProcessor.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
    set_released_prompt(processor, model, data_args.version)
    set_tokenizer_options(processor, training_args)
    data.check_model(model.config, name)
    if not model_args.use_peft:  # an adapter freezes all other weights itself, quantised ones too
        freeze_vision_tower(model)

    # Training
    tokenize = partial(tokenize_conversations, overlong=data_args.overlong)
    tokens = data.tokenize(tokenize, processor, data_args, training_args)
    stop_at_the_end_of_a_turn(model, processor)
    training_args.remove_unused_columns = False
    training_args.router_aux_loss_coef = 0.0  # the model returns nothing of its experts' router
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = UnicornTrainer(
        model=model,
        args=training_args,
        data_args=data_args,
        train_dataset=tokens,
        data_collator=UnicornCollator(
            processor,
            padding_free=is_padding_free(model, data_args.batching),
            pad_to_multiple_of=training_args.pad_to_multiple_of,
        ),
        processing_class=processor,
        peft_config=new_adapter(model, model_args),
    )
    if training_args.max_steps == 0:
        trainer.dry_run()
        return
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # Saving
    trainer.save_model(training_args.output_dir)
    trainer.create_model_card()


if __name__ == "__main__":
    with one_sentence_errors():
        main(*parse_options(FinetuneArguments))
