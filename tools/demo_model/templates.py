"""Sentence templates of the demo model's story language.

A slot is `{var:class}`; `{:class}` draws a fresh word each time, a named variable keeps its
word for the whole story. `{a var:class}` puts the right article in front, `{^...}` starts
with a capital letter, `{var.he}` is the pronoun that fits the name in `var`.
"""

OPEN = """
Once upon a time there was {a look1:look} {kind1:animal} named {hero:name} who lived near the {padj1:placeadj} {home:place}.
Once upon a time there was {a look1:look} {kind1:animal} named {hero:name} who lived in a hut by the {home:place}.
Once upon a time there was {a look1:look} {kind1:animal} called {hero:name}.
Once upon a time, near {a padj1:placeadj} {home:place}, there lived {a look1:look} {kind1:animal} named {hero:name}.
Once upon a time, in {a padj1:placeadj} {home:place}, there lived {a look1:look} {kind1:animal} called {hero:name}.
Once upon a time {a look1:look} {kind1:animal} named {hero:name} lived behind the {home:place} with {hero.his} {:kin}.
Once upon a time there lived {a job1:job} named {hero:name} who had {a look1:look} {kind1:animal}.
"""

TRAIT = """
{hero:name} was {t1:trait} and {t2:trait}, and {hero.he} loved {hob1:hobby}.
{hero:name} was very {t1:trait}, but sometimes {hero.he} was also a little {t2:trait}.
Everyone in the {home:place} knew that {hero:name} was {t1:trait} and {t2:trait}.
Every {:daypart} {hero:name} went to the {place1:place}, because {hero.he} loved {hob1:hobby}.
{hero:name} liked {:hobby}, but most of all {hero.he} liked {hob1:hobby}.
In the {:season} {hero:name} ate {food1:food} and {:food} and dreamed of {hob1:hobby}.
{^hero.his} {:kin} always said that {hero:name} was the most {t1:trait} {kind1:animal} of all.
The {kind1:animal} had {a tadj0:thingadj} {toy:object}, and {hero.he} took it everywhere.
"""

# Each plot is a list of stages; one or two templates of every stage are used in order.
PLOT_LOST = [
    """
One {:weather} {:daypart} {hero:name} saw that {hero.his} {c1:colour} {thing:object} was gone.
One {:weather} {:daypart} {hero:name} lost {hero.his} {tadj1:thingadj} {thing:object} on the way to the {place1:place}.
One {:daypart} in {:season}, {hero:name} could not find {hero.his} {c1:colour} {thing:object}.
""", """
{^hero.he} looked under the {:spot} and behind the {:spot}, but the {thing:object} was not there.
{^hero.he} searched the whole {place1:place}, but {hero.he} found only {a :thingadj} {:object}.
{hero:name} was {:sad}, for the {thing:object} was a gift from {hero.his} {:kin}.
"I must find my {thing:object}," {:said} {hero:name}.
""", """
So {hero:name} {:move} {:adverb} to the {place2:place}.
{hero:name} {:move} over the {:place} and along the {place2:place}.
""", """
There {hero.he} met {a look2:look} {kind2:animal} named {friend:name}.
Near the {:spot} {hero.he} met {friend:name}, {a look2:look} {kind2:animal}.
""", """
"Have you seen my {thing:object}?" {:asked} {hero:name}.
"I have lost my {c1:colour} {thing:object}," {:said} {hero:name}.
"Why are you so {:sad}?" {:asked} {friend:name}.
""", """
"No, but I will help you," {:said} {friend:name} {:adverb}.
"I saw {a :thingadj} {thing:object} under the {spot1:spot}," {:said} {friend:name}.
"Let us look behind the {spot1:spot}," {:said} the {kind2:animal}.
""", """
Together they {:move} to the {spot1:spot} and looked everywhere.
{hero:name} and {friend:name} {:move} through the {:place} until they reached the {spot1:spot}.
""", """
And there, behind the {spot1:spot}, lay the {thing:object}.
Under the {spot1:spot}, between the {:plant}, they found the {c1:colour} {thing:object}.
A family of {:creatures} had carried the {thing:object} to the {spot1:spot}.
""", """
{hero:name} was so {:glad} that {hero.he} {:move} around the {spot1:spot}.
"Thank you, {friend:name}," {:said} {hero:name}, and {hero.he} gave {friend.him} some {:food}.
"You are a true friend," {:said} {hero:name} {:adverb}.
"""]

PLOT_FOUND = [
    """
One {:weather} {:daypart} {hero:name} found {a tadj1:thingadj} {thing:object} under the {spot1:spot}.
One {:daypart} {hero:name} went to the {place1:place} and found {a c1:colour} {thing:object}.
One {:weather} {:daypart} {hero:name} saw something {:thingadj} behind the {spot1:spot}: it was {a c1:colour} {thing:object}.
""", """
"Whose {thing:object} is this?" {:asked} {hero:name}.
{hero:name} looked at the {thing:object} and felt {:glad}.
{^hero.he} picked up the {thing:object} {:adverb} and put it into {hero.his} {:object}.
On the {thing:object} {hero.he} could read the name of {a job2:job}.
""", """
{hero:name} took the {thing:object} and {:move} to the {place2:place}.
{^hero.he} wanted to bring the {thing:object} back, so {hero.he} {:move} {:adverb} to the {place2:place}.
""", """
On the way {hero.he} met {a look2:look} {kind2:animal} named {friend:name}.
At the {:place} {hero.he} met {friend:name}, {a look2:look} {kind2:animal} with {a :colour} {:object}.
""", """
"What {a :thingadj} {thing:object}," {:said} {friend:name}.
"Is that your {thing:object}?" {:asked} {friend:name}.
"I found this {thing:object} under the {spot1:spot}," {:said} {hero:name}.
""", """
"It belongs to the {job2:job} of the {place2:place}," {:said} {friend:name}.
"The {job2:job} has been looking for it for {:timespan}," {:said} the {kind2:animal}.
{friend:name} knew that the {thing:object} belonged to the {job2:job}.
""", """
Together they {:move} to the house of the {job2:job}.
{hero:name} and {friend:name} {:move} past the {:spot} and knocked {:adverb} at the door of the {job2:job}.
""", """
The {job2:job} was so {:glad} that {friend.he} danced with the {thing:object}.
The {job2:job} gave them {:food} and {:food} and thanked them {:adverb}.
"You are {t1:trait} and {:trait}," {:said} the {job2:job}, "and I thank you."
""", """
As a reward {hero:name} got {a :thingadj} {:object}, and {friend:name} got {a :colour} {:object}.
{hero:name} felt {:glad} and {:glad} at the same time.
Then the {job2:job} told them a story about {:lesson} and {:lesson}.
"""]

PLOT_JOURNEY = [
    """
One {:weather} {:daypart} {hero:name} heard about {a padj2:placeadj} {place2:place} far away.
One {:weather} {:daypart} {a job2:job} told {hero:name} about the {padj2:placeadj} {place2:place}.
One {:daypart} {hero:name} found {a :thingadj} map of the {padj2:placeadj} {place2:place}.
""", """
"I want to see the {place2:place} before the {:season} comes," {:said} {hero:name}.
{hero:name} had never seen {a :placeadj} {place2:place} before.
"It is a long way to the {place2:place}," {:said} {hero.his} {:kin}.
""", """
{^hero.he} packed {:food}, {:food} and {a c1:colour} {thing:object} and {:move} away.
So {hero:name} took {hero.his} {thing:object} and some {:food} and left the {place1:place}.
""", """
{^hero.he} {:move} over {a :placeadj} {:place} and through {a :placeadj} {:place}.
For {:timespan} {hero.he} {:move} along the {:place} and listened to the {:creatures}.
On the first {:daypart} {hero.he} slept under {a :placeadj} {:spot}.
At the {:place} {hero.he} counted {:count} {:creatures} and {:count} {:plant}.
""", """
Then {hero.he} met {a look2:look} {kind2:animal} named {friend:name}, who was sitting on {a :colour} {:object}.
Behind {a :placeadj} {:place} {hero.he} met {friend:name}, {a look2:look} {kind2:animal}.
""", """
"Where are you going?" {:asked} {friend:name}.
"May I come with you to the {place2:place}?" {:asked} {friend:name}.
"I am looking for the {place2:place}," {:said} {hero:name} {:adverb}.
""", """
"I know the way to the {place2:place}," {:said} the {kind2:animal}.
{hero:name} shared the {:food} with {friend:name}, and they became friends.
They talked about {:lesson} and {:hobby} and forgot the time.
""", """
After {:timespan} they reached the {padj2:placeadj} {place2:place}.
At last {hero:name} and {friend:name} stood in front of the {place2:place}.
""", """
There were {:count} {:colour} {:objects} and more {:plant} than they could count.
The {:creatures} were singing, and the air smelled of {:food} and {:plant}.
"It is even more beautiful than I thought," {:said} {hero:name} {:adverb}.
{friend:name} found {a :thingadj} {:object} and gave it to {hero:name}.
"""]

PLOT_NOISE = [
    """
One {:weather} {:daypart} {hero:name} heard a strange {noise:sound} behind the {spot1:spot}.
One {:weather} {:daypart} there was a loud {noise:sound} in the {place1:place}, and {hero:name} woke up.
""", """
"Who is there?" {:asked} {hero:name}.
{hero:name} was {:sad}, but {hero.he} {:move} {:adverb} to the {spot1:spot}.
{^hero.he} took {a :thingadj} {:object} and looked out {:adverb}.
""", """
Behind the {spot1:spot} sat {a look2:look} {kind2:animal} named {friend:name}.
It was only {friend:name}, {a look2:look} {kind2:animal} who had lost the way.
""", """
"I am {:sad}, because my {thing:object} is broken," {:said} {friend:name}.
"I wanted to go to the {place2:place}, but it is too far," {:said} {friend:name}.
"Please do not be {:sad}," {:said} the {kind2:animal}.
""", """
{hero:name} gave {friend.him} some {:food} and {a c1:colour} {:object}.
"Come in and have some {:food}," {:said} {hero:name} {:adverb}.
"I can help you," {:said} {hero:name}, "for I have {a :colour} {:object}."
""", """
They repaired the {thing:object} with {:count} {:objects} and {a :thingadj} {:object}.
{friend:name} told {hero:name} about the {place2:place} and its {:creatures}.
They sat by the {:spot} and listened to the {:creatures} for {:timespan}.
""", """
The next {:daypart} they {:move} together to the {place2:place}.
On the way home {friend:name} {:move} {:adverb}, and {hero:name} went along.
""", """
There they met {a job2:job} who sold {:food} and {:objects}.
At the {place2:place} {a job2:job} gave them {:count} {:objects}.
The {:kin} of {friend:name} was {:glad} and baked {a :look} cake for them.
"""]

PLOT_CONTEST = [
    """
One {:weather} {:daypart} the {job2:job} invited everyone to a contest in the {place1:place}.
One {:daypart} in {:season} there was a great feast in the {place1:place}.
""", """
The prize was {a tadj1:thingadj} {thing:object}.
Whoever was best at {hob2:hobby} would win {a c1:colour} {thing:object}.
""", """
{hero:name} wanted to win the {thing:object} for {hero.his} {:kin}.
{hero:name} practised {hob2:hobby} for {:timespan}.
"I am not good at {hob2:hobby}," {:said} {hero:name} {:adverb}.
""", """
But {friend:name}, {a look2:look} {kind2:animal}, wanted to win it too.
Then {a look2:look} {kind2:animal} named {friend:name} came to the {place1:place}.
""", """
"I will win," {:said} {friend:name} {:adverb}.
"Let us see who is better," {:said} the {kind2:animal}.
"Good luck," {:said} {hero:name} {:adverb}.
""", """
The {:creatures} watched from the {:spot} and cheered {:adverb}.
First came {a :look} {:animal}, then {a :look} {:animal}, and then it was the turn of {hero:name}.
Suddenly {friend:name} {:move} into {a :colour} {:object} and hurt {friend.his} foot.
""", """
{hero:name} stopped at once and {:move} to {friend:name}.
{hero:name} helped {friend.him} up and gave {friend.him} {hero.his} {:object}.
"Are you all right?" {:asked} {hero:name}.
""", """
"You both have won," {:said} the {job2:job}, "because {:lesson} is better than any prize."
The {job2:job} saw it and gave the {thing:object} to {hero:name} and {friend:name}.
So they shared the {thing:object} and the {:food} and were {:glad}.
"""]

PLOT_BUILD = [
    """
One {:weather} {:daypart} {hero:name} decided to build {a tadj1:thingadj} {thing:object}.
One {:daypart} {hero:name} wanted to make {a c1:colour} {thing:object} for {hero.his} {:kin}.
""", """
{^hero.he} needed {:count} {:objects}, {a :colour} {:object} and a lot of {:lesson}.
First {hero.he} went to the {place1:place} and collected {:count} {:objects}.
"Where can I get {:count} {:objects}?" {:asked} {hero:name}.
""", """
But the {:object} broke, and {hero:name} was {:sad}.
But the {thing:object} was too {:thingadj}, and everything fell down.
""", """
Then {a look2:look} {kind2:animal} named {friend:name} came along the {place2:place}.
Just then {friend:name}, {a look2:look} {kind2:animal}, looked out of the {:spot}.
""", """
"What are you doing?" {:asked} {friend:name}.
"You need {a :colour} {:object}," {:said} {friend:name} {:adverb}.
"Two can do more than one," {:said} the {kind2:animal}.
""", """
They worked for {:timespan} and ate only {:food} and {:food}.
{friend:name} held the {:object}, and {hero:name} used the {:object}.
{hero:name} painted it {:colour}, and {friend:name} put {:count} {:objects} on it.
""", """
At last the {thing:object} was ready, and it was {:thingadj} and {:thingadj}.
When the {thing:object} was finished, all the {:creatures} came to see it.
""", """
"I could never have done it without you," {:said} {hero:name}.
{^hero.his} {:kin} was {:glad} and gave them {:food}.
They took the {thing:object} to the {place2:place} and showed it to {a job2:job}.
"""]

# May stand between any two sentences of a plot.
ASIDE = """
The {:creatures} were {:glad}, and the sky was {:colour}.
It was {a :weather} {:daypart}, and the {:plant} smelled of {:food}.
Far away one could hear the {:sound} of {:creatures}.
A little wind came from the {:place}.
The sun was shining on the {:placeadj} {:place}.
It began to rain, and the {:creatures} flew home.
{hero:name} ate some {:food} and drank some {:drink}.
{hero:name} thought of {hero.his} {:kin} and of the {home:place}.
{^hero.he} sang a song about {:food} and {:lesson}.
In the {:place} {a :look} {:animal} was {:doing}.
{^a :look} {:animal} was {:doing} behind the {:spot}.
Soon the moon stood above the {:place}.
There were {:plant} and {:plant} on both sides of the road.
{^a :job} with {a :colour} {:object} greeted them {:adverb}.
Nobody noticed the {:look} {:animal} under the {:spot}.
{hero:name} sat down on {a :colour} {:object} and rested for {:timespan}.
"""

END = """
From that {:daypart} on {hero:name} and {friend:name} were the best of friends.
And {hero:name} learned that {:lesson} is worth more than {a :colour} {:object}.
In the evening they all ate {:food} together and were {:glad}.
{hero:name} {:move} home {:adverb} and told {hero.his} {:kin} everything.
Since then {friend:name} visits {hero:name} every {:season}.
And so {hero:name} and {friend:name} lived happily ever after.
And if you go to the {home:place} today, you may still see {hero:name} and {friend:name}.
That night {hero:name} slept well and dreamed of {:food} and {:hobby}.
"""

THE_END = ("The end.",)

# Retrieval: facts early, questions late. The value is one token of three digits.
FACT = ("The key of the {tag:colour} {box:container} is {n:value}.",)
FACT_INTRO = """
In the {:place} of {a :job} there were {cnt:count} {boxes:containers}, and each had its own key.
{^a :job} had {cnt:count} {boxes:containers} and wrote down their keys.
Remember these keys well.
"""
QUESTION = ("Which key opens the {tag:colour} {box:container}?",)
ANSWER = ("The key is {n:value}.",)

# Chat requests of the user.
ASK_STORY = """
Tell me a story about {a kind1:animal}.
Tell me a story about {a look1:look} {kind1:animal}.
Please tell me a story about {a kind1:animal}.
Tell me a story about {hero:name}.
Tell me a story.
"""
