%% Messages for the host that have come to a connection and have not been handed over yet.
%%
%% `nats_gateway_pace' decides whether a message is handed over at once, or waits a moment for others.
%% What was put in first comes out first.
-module(nats_gateway_inbox).

-export([new/1]).
-export([collects/1]).
-export([put/3]).
-export([take/1]).
-export([is_empty/1]).
-export([heard/1]).

-export_type([inbox/0]).

%% So many wait at most.
-define(MAX_COUNT, 1000).

-record(inbox, {
    %% whether the host takes many messages together
    collects :: boolean(),
    pace = nats_gateway_pace:new() :: nats_gateway_pace:pace(),
    %% newest first
    messages = [] :: [term()],
    count = 0 :: non_neg_integer()
}).

-opaque inbox() :: #inbox{}.

-spec new(Collects :: boolean()) -> inbox().
new(Collects) -> #inbox{collects = Collects}.

-spec collects(inbox()) -> boolean().
collects(#inbox{collects = Collects}) -> Collects.

%% `at_once': a client that is waited for may wait for what is in the message. `take': the messages are
%% to be handed over now. `first': it waits, and no other does.
-spec put(Message :: term(), at_once | NowUs :: integer(), inbox()) ->
    {take, [term()], inbox()} | {first | wait, inbox()}.
put(Message, at_once, Inbox) ->
    take_with([Message], Inbox);
put(Message, Now, Inbox = #inbox{pace = Pace, messages = Messages, count = Count}) ->
    case nats_gateway_pace:next(Now, Pace) of
        {at_once, NPace} ->
            take_with([Message], Inbox#inbox{pace = NPace});
        {collect, NPace} when Count =:= 0 ->
            {first, Inbox#inbox{pace = NPace, messages = [Message], count = 1}};
        {collect, NPace} when Count < ?MAX_COUNT ->
            {wait, Inbox#inbox{pace = NPace, messages = [Message | Messages], count = Count + 1}};
        {collect, NPace} ->
            take_with([Message], Inbox#inbox{pace = NPace})
    end.

%% All that wait.
-spec take(inbox()) -> {[term()], inbox()}.
take(Inbox) ->
    {take, Messages, NInbox} = take_with([], Inbox),
    {Messages, NInbox}.

take_with(More, Inbox = #inbox{messages = []}) ->
    {take, More, Inbox};
take_with(More, Inbox = #inbox{messages = Messages, count = Count, pace = Pace}) ->
    {take, lists:reverse(Messages, More), Inbox#inbox{
        messages = [], count = 0, pace = nats_gateway_pace:collected(Count, Pace)
    }}.

-spec is_empty(inbox()) -> boolean().
is_empty(#inbox{messages = Messages}) -> Messages =:= [].

%% The client has sent something.
-spec heard(inbox()) -> inbox().
heard(Inbox = #inbox{pace = Pace}) -> Inbox#inbox{pace = nats_gateway_pace:heard(Pace)}.
