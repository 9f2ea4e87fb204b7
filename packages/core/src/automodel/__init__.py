"""AutoModel: fine-tune Hugging Face LLMs and VLMs from one YAML recipe.

Importing this package imports neither torch nor transformers.
"""

from importlib.metadata import version

from automodel.errors import AutoModelError, InputError, RunError
from automodel.hookspecs import hookimpl, hookspec
from automodel.providers import Kind, Provider

__version__ = version("automodel-core")
__all__ = ["AutoModelError", "InputError", "Kind", "Provider", "RunError", "hookimpl", "hookspec"]
