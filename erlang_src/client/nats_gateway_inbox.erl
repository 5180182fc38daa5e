%% The messages for the host that a connection has received and not handed over yet.
%%
%% `nats_gateway_pace' decides whether a message is handed over at once, or waits a moment for
%% others. The messages keep their order.
-module(nats_gateway_inbox).

-export([new/1]).
-export([collects/1]).
-export([put/3]).
-export([take/2]).
-export([is_empty/1]).
-export([heard/1]).

-export_type([inbox/0]).

%% The largest number of messages that wait.
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

%% The caller passes `at_once' if the client's operations may wait for this message. With `take' the
%% messages are to be handed over now. With `first' or `wait' the message waits, with `first' as the
%% only one.
-spec put(Message :: term(), at_once | NowUs :: integer(), inbox()) ->
    {take, [term()], inbox()} | {first | wait, inbox()}.
put(Message, at_once, Inbox = #inbox{pace = Pace}) ->
    take_with(Message, nats_gateway_pace:heard(Pace), Inbox);
put(Message, Now, Inbox = #inbox{pace = Pace, messages = Messages, count = Count}) ->
    case nats_gateway_pace:next(Now, Pace) of
        {at_once, NPace} ->
            take_with(Message, NPace, Inbox);
        {collect, NPace} when Count =:= 0 ->
            {first, Inbox#inbox{pace = NPace, messages = [Message], count = 1}};
        {collect, NPace} when Count < ?MAX_COUNT ->
            {wait, Inbox#inbox{pace = NPace, messages = [Message | Messages], count = Count + 1}};
        {collect, NPace} ->
            take_with(Message, nats_gateway_pace:collected(Count + 1, Now, NPace), Inbox)
    end.

-spec take(NowUs :: integer(), inbox()) -> {[term()], inbox()}.
take(_, Inbox = #inbox{messages = []}) ->
    {[], Inbox};
take(Now, Inbox = #inbox{count = Count, pace = Pace}) ->
    take_all(nats_gateway_pace:collected(Count, Now, Pace), Inbox).

take_with(Message, Pace, Inbox) ->
    {Waiting, NInbox} = take_all(Pace, Inbox),
    {take, Waiting ++ [Message], NInbox}.

take_all(Pace, Inbox = #inbox{messages = Messages}) ->
    {lists:reverse(Messages), Inbox#inbox{messages = [], count = 0, pace = Pace}}.

-spec is_empty(inbox()) -> boolean().
is_empty(#inbox{messages = Messages}) -> Messages =:= [].

%% The client has sent something.
-spec heard(inbox()) -> inbox().
heard(Inbox = #inbox{pace = Pace}) -> Inbox#inbox{pace = nats_gateway_pace:heard(Pace)}.
