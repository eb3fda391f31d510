"""Stage 3: train the model, or LoRA adapters, to prefer right answers to wrong ones (DPO, arXiv 2305.18290).

accelerate launch recipes/prefer.py --config recipes/demo/prefer.yaml \
    --model_name_or_path STAGE_2_OUTPUT --dataset DATASET --dataset_config unicorn-preference --output_dir OUTPUT
"""

import unicorn_hf.modeling  # noqa: F401  (adds Unicorn to the Auto classes)
from transformers import AutoProcessor
from trl import DPOConfig, ModelConfig

from unicorn_hf.errors import one_sentence_errors
from unicorn_hf.training import (
    Mixture,
    PairCollator,
    PreferArguments,
    PreferenceTrainer,
    check_options,
    check_trackers,
    freeze_vision_tower,
    load_model_to_finetune,
    loading,
    new_adapter,
    parse_options,
    stop_at_the_end_of_a_turn,
    tokenize_pairs,
)


def main(data_args: PreferArguments, training_args: DPOConfig, model_args: ModelConfig) -> None:
    # Data
    check_options(data_args, training_args, model_args)
    check_trackers(training_args.report_to)
    data = Mixture.read(data_args)

    # Model
    name, trust_remote_code = model_args.model_name_or_path, training_args.trust_remote_code
    model, reference = load_model_to_finetune(model_args, trust_remote_code=trust_remote_code), None
    with loading(name, model_args.model_revision):
        processor = AutoProcessor.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=trust_remote_code
        )
    data.check_model(model.config, name)
    if not model_args.use_peft:  # an adapter's reference is the model without it
        freeze_vision_tower(model)
        reference = load_model_to_finetune(model_args, trust_remote_code=trust_remote_code).requires_grad_(False)

    # Training
    pairs = data.tokenize(tokenize_pairs, processor, data_args, training_args)
    stop_at_the_end_of_a_turn(model, processor)
    training_args.remove_unused_columns = False
    training_args.router_aux_loss_coef = 0.0  # the model returns nothing of its experts' router
    trainer = PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=training_args,
        data_args=data_args,
        train_dataset=pairs,
        data_collator=PairCollator(processor, pad_to_multiple_of=training_args.pad_to_multiple_of),
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
        main(*parse_options(PreferArguments))
