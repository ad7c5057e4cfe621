"""What the model of `bench.moderation` says: prose, in sentences of 13 to 40 characters; one in twelve is English, and some of those are longer.

Windows are cut at sentence ends, so how often they are depends on how long sentences are. `reply` strings paragraphs of
these together, the same for the same seed.
"""

import random

_TOPICS = (
    """\
阳台上的土不要压得太实，根需要空气。
先把花盆底下的孔用碎瓦片盖住，再填一层粗沙。
春天浇水要少，等表面的土干了再浇。
如果叶子发黄，多半是水太多，而不是水太少。
每两周施一次稀释的液肥，比一次施很多要好。
中午阳光太强的时候，用一块旧窗帘遮一下就够了。
有人喜欢把咖啡渣撒在土里，其实效果有限。
移栽之后的头三天，最好放在没有直射光的地方。
Basil and mint grow well in the same pot.
剪下来的枝条插在清水里，十天左右就会长出新根。
冬天把盆搬进屋里，离暖气远一点。
你可以先从薄荷和小葱开始，它们几乎不会失败。""",
    """\
这个问题可以分成两步来看。
首先，程序在启动的时候会读取一次配置文件。
如果文件里有拼错的名字，它会直接退出，并且说明是哪一行。
其次，每个请求都会带上一个编号，方便以后在日志里查找。
The default timeout is five seconds.
超时以后不会自动重试，因为对方可能已经收到了请求。
建议把重试的次数限制在两次以内，中间留出随机的等待时间。
这样做的好处是，即使服务短暂中断，用户也几乎感觉不到。
缓存并不总是有用，要先测量，再决定放在哪里。
如果你用的是较新的版本，这个参数已经改了名字。
You can check it with a small script before the release.
最后别忘了写一个测试，把这次的错误固定下来。""",
    """\
这条古道全长大约八十公里，走完需要四天。
第一天的路比较平，沿着河谷一直往西。
村口有一家小客栈，老板会做很好吃的米粉。
从这里开始爬山，海拔一共上升九百米。
下雨以后石板很滑，最好带一根登山杖。
山顶的风很大，即使在夏天也要准备一件外套。
The last bus back to town leaves at half past five.
如果错过了，也可以在镇上住一晚，房间不贵。
第三天会经过一座清代的石桥，桥上刻着修桥人的名字。
沿途的水可以喝，但是最好先烧开。
路标不多，建议提前把地图下载到手机里。
秋天的时候，整个山谷都是金黄色的。""",
    """\
做这道菜最重要的是火候，而不是调料。
豆腐先用淡盐水泡十分钟，这样煎的时候不容易碎。
锅烧热以后再放油，油微微冒烟的时候下姜片。
把切好的番茄炒出汁，大约需要三分钟。
加一小勺糖可以中和酸味，不喜欢甜的人可以不加。
接着倒入半碗热水，盖上锅盖，转小火慢慢炖。
Taste it before you add more salt.
出锅之前撒上葱花，香味会一下子出来。
剩下的汤汁拌面也很好吃，千万不要倒掉。
如果家里没有砂锅，用普通的炒锅也可以。
一家三口吃的话，这个量刚刚好。
整个过程不会超过二十五分钟。""",
    """\
月亮总是用同一面对着地球，这并不是巧合。
它自转一圈的时间，正好等于绕地球一圈的时间。
这种现象叫做潮汐锁定，在太阳系里很常见。
几十亿年以前，月亮离我们比现在近得多，潮水也高得多。
现在它每年大约远离三点八厘米。
This was measured with mirrors left by the astronauts.
激光从地面出发，不到三秒钟就能回来。
月球背面的环形山比正面多，地壳也更厚一些。
至于原因，科学家还没有完全一致的看法。
如果你有一副普通的望远镜，就能看到最大的几个。
最好的观察时间不是满月，而是上弦月前后。
那时候阳光斜着照过来，阴影会把山的轮廓画得很清楚。""",
    """\
学一门语言，最难的不是开始，而是坚持到第三个月。
每天二十分钟，比周末一次学三个小时更有效。
生词不要单独背，放在句子里更容易记住。
听不懂的时候不用着急，先抓住你认识的那几个词。
Reading children's books is not a waste of time.
把自己说的话录下来，过一个星期再听，你会发现很多问题。
语法书可以当作字典来用，需要的时候再去翻。
找一个同样在学习的朋友，互相改作文。
不要怕说错，对方通常只会觉得你很努力。
考试的分数只能说明一部分情况。
半年以后，试着用它写一封真正的信。
到那时，你会感谢今天没有放弃的自己。""",
    """\
每个月的第一件事，是把固定的开支列出来。
房租、水电、交通和吃饭，通常占收入的一半以上。
剩下的部分先存起来，再考虑怎么花。
应急的钱至少要够用三个月，放在随时能取的地方。
Interest on a card is often higher than it looks.
如果同时有几笔欠款，先还利率最高的那一笔。
买大件之前等一个星期，很多时候你会改变主意。
记账不需要很复杂，一张表格就足够了。
收入增加的时候，生活水平可以慢一点再提高。
关于投资，没有人能保证只赚不赔。
不懂的产品不要买，这条原则比什么都重要。
最后，每年留出一点钱，去做一件让自己高兴的事。""",
    """\
这座图书馆建于一九二三年，最早只有两个房间。
当时的藏书不到三千册，大部分是本地人捐的。
战争期间，管理员把最珍贵的手稿藏在了井里。
后来修复的时候，人们在墙里又发现了一批信件。
These letters are now kept in the east wing.
新馆的设计保留了原来的大门和那棵老樟树。
阅览室一共有四百个座位，周末经常坐满。
孩子们最喜欢二楼的窗台，可以一边看书一边看河。
每个星期三晚上有免费的讲座，不需要预约。
借书的期限是四个星期，可以在网上续借一次。
如果你想找旧报纸，请到地下一层询问工作人员。
据说那里还留着第一任馆长的书桌。""",
)
_SENTENCES = tuple(tuple(topic.splitlines()) for topic in _TOPICS)
_OPENINGS = ("好的，我来说明一下。", "这是一个很好的问题！", "可以的，下面分几点来讲：\n\n", "当然可以。")

SHORTEST, LONGEST = 900, 1500
CHUNK_CHARS = (2, 3, 4)


def reply(seed: int, chars: int = 0) -> str:
    """A reply of at least `chars` characters, up to the end of its sentence; 0 for any length that is usual."""
    draw = random.Random(seed)
    wanted = chars or draw.randint(SHORTEST, LONGEST)
    said = draw.choice(_OPENINGS)
    length = len(said)
    parts = [said]
    while length < wanted:
        for sentence in draw.sample(draw.choice(_SENTENCES), draw.randint(3, 7)):
            # After a Latin full stop comes a space.
            said = f" {sentence} " if sentence.isascii() else sentence
            parts.append(said)
            length += len(said)
            if length >= wanted:
                break
        else:
            parts.append("\n\n")
            length += 2
    return "".join(parts)


def chunks(text: str, seed: int) -> list[str]:
    """The text as a model says it, a few characters at a time."""
    draw = random.Random(seed)
    said, at = [], 0
    while at < len(text):
        length = draw.choice(CHUNK_CHARS)
        said.append(text[at : at + length])
        at += length
    return said
