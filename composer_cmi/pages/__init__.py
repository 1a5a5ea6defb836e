"""What is read in a browser or as Markdown: a page as a list of blocks, written both ways."""

from composer_cmi.pages.blocks import Block, Bold, Code, Details, Heading, Lines, Paragraph, Picture, Rows, to_markdown
from composer_cmi.pages.page import markdown_page, to_html

__all__ = [
    'Block',
    'Bold',
    'Code',
    'Details',
    'Heading',
    'Lines',
    'Paragraph',
    'Picture',
    'Rows',
    'markdown_page',
    'to_html',
    'to_markdown',
]
