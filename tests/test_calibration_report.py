"""A study's report on runs that have fitted a temperature."""

from __future__ import annotations

from composer_cmi.run.outputs.results import Calibration, Reliability
from composer_cmi.study.findings.report import report
from report_tools import CE, write_arm


def part(nll: float, ece: float, brier: float) -> Reliability:
    return Reliability(
        nll=nll, ece=ece, brier=brier, rows=[10] + [0] * 14, confidence=[0.05] * 15, right=[1] + [0] * 14
    )


def test_the_report_has_a_table_of_calibrated_arms_alone(tmp_path):
    splits = {'dev': {'before': part(0.5, 0.1, 0.3), 'after': part(0.4, 0.02, 0.25)}}
    write_arm(tmp_path, 's', 'ce', CE)
    assert '<summary>Calibration' not in report(tmp_path)['markdown'].read_text()
    write_arm(tmp_path, 's', 'fitted', CE, calibration=Calibration(temperature=1.5, rows=60, splits=splits))
    section = report(tmp_path)['markdown'].read_text()
    section = section.split('<summary>Calibration</summary>')[1].split('</details>')[0]
    rows = [line for line in section.splitlines() if line.startswith('| s |')]
    assert len(rows) == 1
    cells = [cell.strip().replace('\\', '') for cell in rows[0].strip('|').split('|')]
    assert cells[1:] == ['fitted', '8', '1.5', '0.5000 -> 0.4000', '0.1000 -> 0.0200', '0.3000 -> 0.2500']
