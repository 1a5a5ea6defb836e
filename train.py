"""Train from a YAML file, under Composer's launcher.

composer train.py yamls/demo_mincmi.yaml
composer -n 2 train.py yamls/bert_glue_mincmi.yaml task=rte optimizer.lr=3e-5
"""

from composer_cmi.run.command import main

if __name__ == '__main__':
    main()
