"""Every word of the page in every language it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_agent.types import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """``code`` is the language's BCP 47 tag; ``name`` and ``short`` are what it calls itself; {words} are filled in."""

    code: str
    name: str
    short: str
    title: str
    welcome: str
    hint: str
    placeholder: str
    # settings
    settings: str
    tools: str
    ask: str
    ask_hint: str
    sampling: str
    temperature: str
    temperature_hint: str
    top_p: str
    top_p_hint: str
    max_tokens: str
    max_tokens_hint: str
    seed: str
    seed_hint: str
    new_chat: str
    export: str
    language: str
    theme: str
    # steps
    thinking: str
    thought: str
    reading: str
    using: str
    used: str
    used_badly: str
    refused_call: str
    asking: str
    arguments: str
    result: str
    problem: str
    not_called: str
    # approval
    approval: str
    approve: str
    refuse: str
    # what happened
    stopped: str
    same_again: str
    too_long: str
    busy: str
    failed: str
    broken: str
    refused: str
    limit: str
    limits: Mapping[StopReason, str]
    # the exported file
    you: str
    agent: str
    files: str


ENGLISH = Texts(
    code="en",
    name="English",
    short="EN",
    title="Qwen Agent",
    welcome="What can I do for you?",
    hint="I think in steps and use tools. Every step can be opened.",
    placeholder="Ask something, or drop a file here",
    settings="Settings",
    tools="Tools",
    ask="Ask me before every call",
    ask_hint="Calls that change something always ask",
    sampling="Sampling",
    temperature="Temperature",
    temperature_hint="0 always gives the likeliest answer",
    top_p="Top-p",
    top_p_hint="Only the likeliest tokens that make up this share",
    max_tokens="Longest step",
    max_tokens_hint="In tokens",
    seed="Seed",
    seed_hint="Empty: a new one every time",
    new_chat="New chat",
    export="Export",
    language="Language",
    theme="Light or dark",
    thinking="Thinking",
    thought="Thought",
    reading="Reading, {percent} %",
    using="Using {tool}",
    used="Used {tool}",
    used_badly="{tool} failed",
    refused_call="{tool} was refused",
    asking="{tool} needs your approval",
    arguments="Arguments",
    result="Result",
    problem="Problem",
    not_called="The call was not made.",
    approval="May **{tool}** be called with this?",
    approve="Allow",
    refuse="Refuse",
    stopped="Stopped. The agent will not remember this turn.",
    same_again="At temperature 0 the answer will be the same. Raise the temperature in the settings for another one.",
    too_long=(
        "This is too long: {tokens} tokens, and the model takes {window}. "
        "Shorten the question, switch off tools or begin a new chat."
    ),
    busy="The model is busy with other conversations. Please try again in a moment.",
    failed="This could not be answered: {problem}",
    broken="Something went wrong inside ({kind}). The conversation is kept; please try again.",
    refused="This cannot be done: {problem}",
    limit="Ended early: {reason}.",
    limits={
        StopReason.MAX_STEPS: "Ended early: this took too many steps.",
        StopReason.MAX_TOOL_CALLS: "Ended early: this took too many calls.",
        StopReason.MAX_TOKENS: "Ended early: the answer was longer than a step may be (see the settings).",
        StopReason.MAX_SECONDS: "Ended early: this took too long.",
        StopReason.REPEATED_CALL: "Ended early: the same call was asked for again and again.",
        StopReason.CONTEXT_FULL: "Ended early: the model's window is full. A new chat has room again.",
    },
    you="You",
    agent="Agent",
    files="Files",
)

CHINESE = Texts(
    code="zh",
    name="中文",
    short="中",
    title="Qwen Agent",
    welcome="有什么可以帮您？",
    hint="我会分步思考并使用工具，每一步都可以展开查看。",
    placeholder="输入问题，或将文件拖到这里",
    settings="设置",
    tools="工具",
    ask="每次调用前先询问我",
    ask_hint="会产生改动的调用总会询问",
    sampling="采样",
    temperature="温度",
    temperature_hint="为 0 时总是给出最可能的回答",
    top_p="Top-p",
    top_p_hint="只从累计概率达到此值的词元中选取",
    max_tokens="单步最大长度",
    max_tokens_hint="以词元计",
    seed="随机种子",
    seed_hint="留空则每次不同",
    new_chat="新对话",
    export="导出",
    language="语言",
    theme="浅色或深色",
    thinking="思考中",
    thought="思考",
    reading="读取中，{percent}%",
    using="正在使用 {tool}",
    used="已使用 {tool}",
    used_badly="{tool} 调用失败",
    refused_call="{tool} 已被拒绝",
    asking="{tool} 需要您的批准",
    arguments="参数",
    result="结果",
    problem="问题",
    not_called="未执行此调用。",
    approval="允许这样调用 **{tool}** 吗？",
    approve="允许",
    refuse="拒绝",
    stopped="已停止。智能体不会记住这一轮。",
    same_again="温度为 0 时回答不会变化。如需不同的回答，请在设置中调高温度。",
    too_long="内容过长：共 {tokens} 个词元，而模型最多接受 {window} 个。请缩短问题、关闭部分工具或开始新对话。",
    busy="模型正忙于其他对话，请稍后再试。",
    failed="无法回答：{problem}",
    broken="内部出错（{kind}）。对话已保留，请重试。",
    refused="无法执行：{problem}",
    limit="提前结束：{reason}。",
    limits={
        StopReason.MAX_STEPS: "提前结束：步骤过多。",
        StopReason.MAX_TOOL_CALLS: "提前结束：工具调用过多。",
        StopReason.MAX_TOKENS: "提前结束：回答超过了单步最大长度（见设置）。",
        StopReason.MAX_SECONDS: "提前结束：用时过长。",
        StopReason.REPEATED_CALL: "提前结束：反复请求同一个调用。",
        StopReason.CONTEXT_FULL: "提前结束：模型的上下文已满，请开始新对话。",
    },
    you="您",
    agent="智能体",
    files="文件",
)

JAPANESE = Texts(
    code="ja",
    name="日本語",
    short="日",
    title="Qwen Agent",
    welcome="何をお手伝いしましょうか？",
    hint="段階的に考え、ツールを使います。各ステップは開いて確認できます。",
    placeholder="質問を入力するか、ファイルをここにドロップ",
    settings="設定",
    tools="ツール",
    ask="呼び出すたびに確認する",
    ask_hint="何かを変更する呼び出しは常に確認します",
    sampling="サンプリング",
    temperature="温度",
    temperature_hint="0 では常に最も確からしい答えになります",
    top_p="Top-p",
    top_p_hint="累積確率がこの値になるまでのトークンから選びます",
    max_tokens="1 ステップの最大長",
    max_tokens_hint="トークン数",
    seed="シード",
    seed_hint="空欄なら毎回変わります",
    new_chat="新しい会話",
    export="エクスポート",
    language="言語",
    theme="ライト／ダーク",
    thinking="考えています",
    thought="思考",
    reading="読み込み中 {percent}%",
    using="{tool} を使用中",
    used="{tool} を使用しました",
    used_badly="{tool} が失敗しました",
    refused_call="{tool} は拒否されました",
    asking="{tool} には承認が必要です",
    arguments="引数",
    result="結果",
    problem="問題",
    not_called="この呼び出しは行われませんでした。",
    approval="この内容で **{tool}** を呼び出してよいですか？",
    approve="許可",
    refuse="拒否",
    stopped="停止しました。このやり取りはエージェントに記憶されません。",
    same_again="温度が 0 のため、同じ答えになります。別の答えが必要なら設定で温度を上げてください。",
    too_long=(
        "長すぎます：{tokens} トークンありますが、モデルが扱えるのは {window} までです。"
        "質問を短くするか、ツールを減らすか、新しい会話を始めてください。"
    ),
    busy="モデルは他の会話を処理中です。しばらくしてからもう一度お試しください。",
    failed="回答できませんでした：{problem}",
    broken="内部でエラーが発生しました（{kind}）。会話は保持されています。もう一度お試しください。",
    refused="実行できません：{problem}",
    limit="途中で終了しました：{reason}。",
    limits={
        StopReason.MAX_STEPS: "途中で終了しました：ステップが多すぎます。",
        StopReason.MAX_TOOL_CALLS: "途中で終了しました：呼び出しが多すぎます。",
        StopReason.MAX_TOKENS: "途中で終了しました：回答が 1 ステップの最大長を超えました（設定を参照）。",
        StopReason.MAX_SECONDS: "途中で終了しました：時間がかかりすぎました。",
        StopReason.REPEATED_CALL: "途中で終了しました：同じ呼び出しが繰り返されました。",
        StopReason.CONTEXT_FULL: "途中で終了しました：モデルのコンテキストがいっぱいです。新しい会話を始めてください。",
    },
    you="あなた",
    agent="エージェント",
    files="ファイル",
)

# By the tool that they need. In English, because that is all that the model which ships with the package understands.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("calculator", "What is 15% of 2,340?"),
    ("convert_units", "Convert 26.2 miles to kilometres."),
    ("calculator", "What is the square root of 1764?"),
)
LANGUAGES: Mapping[str, Texts] = {each.code: each for each in (ENGLISH, CHINESE, JAPANESE)}


def preferred(accept_language: str) -> Texts:
    """The language that a browser's Accept-Language header likes best; English if it names none of ours."""
    wishes = []
    for at, part in enumerate(accept_language.split(",")):
        tag, _, parameters = part.strip().partition(";")
        try:
            quality = float(parameters.strip().removeprefix("q=")) if parameters else 1.0
        except ValueError:
            quality = 0.0
        wishes.append((-quality, at, tag.strip().lower().partition("-")[0]))
    return next((LANGUAGES[code] for quality, _, code in sorted(wishes) if quality < 0 and code in LANGUAGES), ENGLISH)
