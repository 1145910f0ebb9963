"""Retrieval with LangChain's expression language: a folder as a retriever, a prompt, the embedded model, a parser.

pip install -c constraints.txt '.[langchain]' && python examples/langchain_retrieval.py
"""

from __future__ import annotations

from pathlib import Path

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough

from qwen_agent import Tool
from qwen_agent.langchain_adapter import ChatQwenAgent
from qwen_agent.tools import search_documents

PROMPT = ChatPromptTemplate.from_template("{context}\n\nUsing only the text above: {question}")


class FolderRetriever(BaseRetriever):
    """What our search finds, as a document."""

    search: Tool

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [Document(self.search(query=query))]


def main() -> None:
    search = search_documents(Path(__file__).parent / "docs", results=1, chars=200)
    model = ChatQwenAgent(model="embedded")
    retrieve = FolderRetriever(search=search) | (lambda found: "\n".join(each.page_content for each in found))
    chain = {"context": retrieve, "question": RunnablePassthrough()} | PROMPT | model
    for piece in (chain | StrOutputParser()).stream("How tall is the Eiffel Tower?"):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
