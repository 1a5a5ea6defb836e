"""A run's exported model and its card on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # pyright: ignore[reportPrivateImportUsage]

from composer_cmi.errors import ConfigError
from composer_cmi.exchange.exported import exported_folder

__all__ = ['push']


def push(run: str | Path, repo: str, *, private: bool = False, api: HfApi | None = None) -> str:
    """Upload the exported folder, card included, and nothing else of the run; returns where it is.

    Args:
        run: A finished run's folder, or that of an exported model.
        repo: `OWNER/NAME`; made where it is not there yet.
        private: Of a repository that is made: visible to its owners only.
        api: Another hub, or another token than the one that `hf auth login` stored.

    Raises:
        ConfigError: There is no exported model or no card, nobody is logged in, or the hub is away or refuses.
    """
    folder = exported_folder(run)
    if not (folder / 'README.md').is_file():
        raise ConfigError(f"{folder} has no card, README.md: the run's own command writes it anew.")
    api = api or HfApi()
    try:
        validate_repo_id(repo)
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message='Model of composer-cmi', ignore_patterns=['.*']
        )
    except HFValidationError as error:
        raise ConfigError(f'REPO {repo!r} is no name of a repository, such as OWNER/NAME: {_first(error)}') from error
    except LocalTokenNotFoundError as error:
        raise ConfigError(_LOGIN) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, 'status_code', None)
        raise ConfigError(
            _LOGIN if status == 401 else f'The hub refuses {repo!r} ({status}): {_first(error)}'
        ) from error
    except Exception as error:  # of the HTTP client, another one in each version
        if not _is_network(error):
            raise
        raise ConfigError(f'The hub at {api.endpoint} cannot be reached: {_first(error)}') from error
    return str(url)


_LOGIN = 'The hub knows nobody here: log in by `hf auth login`, or set HF_TOKEN to a token that may write.'


def _is_network(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition('.')[0] in (
        'httpx',
        'httpx2',
        'httpcore',
        'requests',
    )


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if isinstance(error, HfHubHTTPError) and lines else lines[0] if lines else type(error).__name__)[
        :200
    ]
    return text if text.endswith('.') else f'{text}.'
