"""What this plugin brings to AutoModel: export, serving, the model registry, and the commands that use them."""

from automodel import Kind, Provider, hookimpl

AUTOMODEL_HOOKS = 1


@hookimpl
def kinds() -> tuple[Kind, ...]:
    """The sections of what comes after training."""
    return (
        Kind("export", sections=("checkpoint_management.export_config",), default="export"),
        Kind("exporter"),
        Kind("server", sections=("deployment.serving_config",), named_by="framework"),
        Kind("model_registry", sections=("model_registry",), named_by="backend"),
    )


@hookimpl
def export_providers() -> tuple[Provider, ...]:
    """What is exported, and how far it is optimised."""
    return (Provider("export", "automodel_deploy.export:Export", summary="formats and optimisation level"),)


@hookimpl
def exporter_providers() -> tuple[Provider, ...]:
    """File formats; recipes name them in `formats`."""
    return (
        Provider(
            "safetensors", "automodel_deploy.formats.safetensors:write", summary="a Hugging Face directory, safetensors"
        ),
        Provider(
            "pytorch", "automodel_deploy.formats.pytorch:write", summary="a Hugging Face directory, pytorch_model.bin"
        ),
    )


@hookimpl
def server_providers() -> tuple[Provider, ...]:
    """Servers of the OpenAI API; recipes name them in `framework`."""
    return (
        Provider("vllm", "automodel_deploy.vllm:VLLM", summary="vLLM's OpenAI server"),
        Provider(
            "transformers", "automodel_deploy.transformers_serve:TransformersServe", summary="`transformers serve`"
        ),
    )


@hookimpl
def model_registry_providers() -> tuple[Provider, ...]:
    """Registries of models; recipes name them in `backend`."""
    return (Provider("mlflow", "automodel_deploy.mlflow:MLflow", summary="MLflow's model registry"),)


@hookimpl
def cli_commands() -> tuple[Provider, ...]:
    """`automodel export`, `deploy`, `register`, `pipeline`."""
    return (
        Provider("export", "automodel_deploy.commands.export:export", summary="Write a trained model for serving."),
        Provider("deploy", "automodel_deploy.commands.deploy:deploy", summary="Serve a trained model."),
        Provider("register", "automodel_deploy.commands.register:register", summary="Register a trained model."),
        Provider(
            "pipeline",
            "automodel_deploy.commands.pipeline:pipeline",
            summary="Train, validate, export, register and deploy.",
        ),
    )
