"""The table of contents: every built-in component by kind and name.

Reach it as ``lavislite.registry``: ``registry.models.names()`` lists,
``@registry.vision_backbones.register("x")`` adds. LAVIS's spellings, such as
``@registry.register_model("x")``, are the same methods.
"""

from lavislite.common.registry import Registry

models = Registry(
    "model",
    "models",
    {
        "blip2": "lavislite.models.blip2.stage1:Blip2Qformer",
        "blip2_qformer": "lavislite.models.blip2.stage1:Blip2Qformer",
        "blip2_feature_extractor": "lavislite.models.blip2.stage1:Blip2Qformer",
        "blip2_image_text_matching": "lavislite.models.blip2.matching:Blip2ITM",
        "blip2_opt": "lavislite.models.blip2.stage2:Blip2OPT",
        "blip2_t5": "lavislite.models.blip2.stage2:Blip2T5",
        "blip2_llm": "lavislite.models.blip2.stage2:Blip2LLM",
        "tiny_vit_attributes": "lavislite.models.vision.attributes:TinyViTAttributes",
        "tiny_language_model": "lavislite.models.language.pretraining:TinyLanguageModel",
    },
)

vision_backbones = Registry(
    "vision backbone",
    "vision_backbones",
    {
        "timm": "lavislite.models.vision.timm:TimmBackbone",
        "hf": "lavislite.models.vision.hf:HFBackbone",
        "eva_clip_g": "lavislite.models.vision.presets:eva_clip_g",
        "clip_L": "lavislite.models.vision.presets:clip_l",
        "eva": "lavislite.models.vision.eva:eva",
        "tiny": "lavislite.models.vision.tiny:TinyViT",
    },
)

language_models = Registry(
    "language model",
    "language_models",
    {
        "causal": "lavislite.models.language.causal:build_causal",
        "seq2seq": "lavislite.models.language.seq2seq:build_seq2seq",
        "playground_opt": "lavislite.models.language.tiny:playground_opt",
        "playground_t5": "lavislite.models.language.tiny:playground_t5",
    },
)

processors = Registry(
    "processor",
    "processors",
    {
        "blip2_image_train": "lavislite.processors.image:Blip2ImageTrain",
        "blip_image_train": "lavislite.processors.image:BlipImageTrain",
        "blip_image_eval": "lavislite.processors.image:BlipImageEval",
        "blip_caption": "lavislite.processors.text:BlipCaption",
        "blip_question": "lavislite.processors.text:BlipQuestion",
    },
)

datasets = Registry(
    "dataset",
    "datasets",
    {
        "image_caption": "lavislite.datasets.caption:ImageCaptionBuilder",
        "image_text_retrieval": "lavislite.datasets.image_text:ImageTextRetrievalBuilder",
        "coco_caption": "lavislite.datasets.caption:CocoCaptionBuilder",
        "coco_retrieval": "lavislite.datasets.image_text:CocoRetrievalBuilder",
        "vg_caption": "lavislite.datasets.caption:VGCaptionBuilder",
        "nocaps": "lavislite.datasets.nocaps:NoCapsBuilder",
        "flickr30k": "lavislite.datasets.flickr30k:Flickr30kBuilder",
        "conceptual_caption_3m": "lavislite.datasets.web:ConceptualCaption3MBuilder",
        "conceptual_caption_12m": "lavislite.datasets.web:ConceptualCaption12MBuilder",
        "sbu_caption": "lavislite.datasets.web:SBUCaptionBuilder",
        "webdataset": "lavislite.datasets.shards:OwnShardsBuilder",
        "laion2B_multi": "lavislite.datasets.shards:Laion2BMultiBuilder",
        "image_vqa": "lavislite.datasets.vqa:ImageVQABuilder",
        "coco_vqa": "lavislite.datasets.vqa:CocoVQABuilder",
        "vg_vqa": "lavislite.datasets.vqa:VGVQABuilder",
        "ok_vqa": "lavislite.datasets.vqa:OKVQABuilder",
        "aok_vqa": "lavislite.datasets.vqa:AOKVQABuilder",
        "gqa": "lavislite.datasets.vqa:GQABuilder",
        "playground_caption": "lavislite.datasets.playground:PlaygroundCaptionBuilder",
        "playground_retrieval": "lavislite.datasets.playground:PlaygroundRetrievalBuilder",
        "playground_attributes": "lavislite.datasets.playground:PlaygroundAttributesBuilder",
        "playground_vqa": "lavislite.datasets.playground:PlaygroundVQABuilder",
        "playground_gqa": "lavislite.datasets.playground.benchmarks:PlaygroundGQABuilder",
        "playground_ok_vqa": "lavislite.datasets.playground.benchmarks:PlaygroundOKVQABuilder",
        "playground_nocaps": "lavislite.datasets.playground.benchmarks:PlaygroundNoCapsBuilder",
        "playground_flickr30k": (
            "lavislite.datasets.playground.benchmarks:PlaygroundFlickr30kBuilder"
        ),
        "playground_text": "lavislite.datasets.playground.text:PlaygroundTextBuilder",
    },
)

tasks = Registry(
    "task",
    "tasks",
    {
        "image_text_pretrain": "lavislite.tasks.pretrain:ImageTextPretrainTask",
        "retrieval": "lavislite.tasks.retrieval:RetrievalTask",
        "captioning": "lavislite.tasks.captioning:CaptioningTask",
        "vqa": "lavislite.tasks.vqa:VQATask",
        "gqa": "lavislite.tasks.gqa:GQATask",
        "ok_vqa": "lavislite.tasks.ok_vqa:OKVQATask",
        "aok_vqa": "lavislite.tasks.aok_vqa:AOKVQATask",
        "multilabel_classification": "lavislite.tasks.classification:MultilabelClassificationTask",
        "language_modelling": "lavislite.tasks.language:LanguageModellingTask",
    },
)

runners = Registry("runner", "runners", {"runner_base": "lavislite.runners.runner:Runner"})

lr_schedules = Registry(
    "lr schedule",
    "lr_schedules",
    {
        "linear_warmup_cosine_lr": "lavislite.common.schedules:linear_warmup_cosine_lr",
        "linear_warmup_step_lr": "lavislite.common.schedules:linear_warmup_step_lr",
        "constant": "lavislite.common.schedules:constant",
    },
)

KINDS: tuple[Registry, ...] = (
    models,
    vision_backbones,
    language_models,
    processors,
    datasets,
    tasks,
    runners,
    lr_schedules,
)

register_model = models.register
register_vision_backbone = vision_backbones.register
register_language_model = language_models.register
register_processor = processors.register
register_builder = datasets.register
register_task = tasks.register
register_runner = runners.register
register_lr_scheduler = lr_schedules.register
