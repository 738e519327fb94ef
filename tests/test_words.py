"""Names and prose use the field's words: those that once stood for them do not come back."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# As identifiers of the package.
NAMES = re.findall(
    r"\w+",
    """
    way Way WAYS member members room rooms floor floors written_as as_on
    Summed Total PerClass Taught CutByClasses ByClasses Exclusive InParts Capped Member
    curves_by_classes Parts independent Known moment Moment Curvature surplus spread
    everyone but_one leads leader chances surprises slope slopes change changes moving
    classes_left counted even_share evenly defined LabelNormalizer label_statistics
    labels_statistics zero_times weigh bounded widen DIGITS term powers whole_part sum_apart
    sum_of_excess Listed numbered listed_classes Found Cut ClassCut Choice Sizes evened enlarged
    classes_pay filled alike varying_as pushed narrowed without_broken _sweep _swept protect Plan
    share right as_right Given _Moving _Counting zero_known_from read_again uncapped
    widened own_constants attempt
    by_rows Pieces are_few are_many are_rows are_whole Weighed shown not_traced WORDS broken
    """,
)
# In its comments and docstrings.
PROSE = r"rooms?|floors?|members?|leader|chances|surprises|nobody|mended|dear|[Ww]hoever"
FILES = sorted((ROOT / "jxent").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_uses_the_words_of_the_field(path):
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text()).readline))
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    assert not names & {*NAMES}
    prose = [t.string for t in tokens if t.type in (tokenize.COMMENT, tokenize.STRING)]
    assert not re.findall(rf"\b(?:{PROSE})\b", "\n".join(prose))
