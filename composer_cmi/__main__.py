"""``python -m composer_cmi FILE.yaml`` and ``composer -n 2 -m composer_cmi FILE.yaml``: what ``train.py`` does."""

from composer_cmi.run.command import main

if __name__ == '__main__':
    main()
