%% Paces what a client publishes to its own subscriptions, for a broker that cannot take much of it
%% at once.
%%
%% EMQX handles all packets that it has read before it sends to the same client what they bring
%% back. It closes a client if more messages wait for it than `force_shutdown.max_mailbox_size'
%% allows (1000; the log says `mailbox_overflow'). It does so even if the client reads all the time:
%% one segment can hold 2500 PUBs. So only some copies are under way at a time, and messages from
%% the broker make room for more.
%%
%% A copy may never come: the broker may deny the message, or give it to another member of a group.
%% So a client that waits pings the broker, and pings again a moment after the answer. In that
%% moment EMQX has found nothing to read, and has looked at what waits for the client. (EMQX skips
%% that if the next packets are already there when it has sent a PINGRESP.)
-module(nats_gateway_echoes).

-export([new/0]).
-export([subscribed/2]).
-export([unsubscribed/2]).
-export([publish/2]).
-export([pinged/2]).
-export([answered/2]).
-export([arrived/2]).
-export([ping_again/1]).
-export([is_under_way/1]).
-export([settled/1]).

-export_type([echoes/0]).

%% The most copies that may be under way. Messages of other clients wait in the same place.
-define(MAX, 400).

-record(echoes, {
    filters = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    %% a filter may have a plain subscription and subscriptions of groups
    subscriptions = #{} :: #{Filter :: binary() => pos_integer()},
    under_way = 0 :: non_neg_integer(),
    %% if a message waits: the PINGREQ whose answer it waits for, or the moment between the two
    ping = none :: none | {first | second, Number :: pos_integer() | due} | moment
}).

-opaque echoes() :: #echoes{}.

-spec new() -> echoes().
new() -> #echoes{}.

-spec subscribed(Filter :: binary(), echoes()) -> echoes().
subscribed(Filter, Echoes = #echoes{filters = Filters, subscriptions = Subscriptions}) ->
    case Subscriptions of
        #{Filter := Count} ->
            Echoes#echoes{subscriptions = Subscriptions#{Filter := Count + 1}};
        #{} ->
            Echoes#echoes{
                filters = nats_gateway_filters:add(Filter, Filters),
                subscriptions = Subscriptions#{Filter => 1}
            }
    end.

-spec unsubscribed(Filter :: binary(), echoes()) -> echoes().
unsubscribed(Filter, Echoes = #echoes{filters = Filters, subscriptions = Subscriptions}) ->
    case Subscriptions of
        #{Filter := 1} ->
            Echoes#echoes{
                filters = nats_gateway_filters:remove(Filter, Filters),
                subscriptions = maps:remove(Filter, Subscriptions)
            };
        #{Filter := Count} ->
            Echoes#echoes{subscriptions = Subscriptions#{Filter := Count - 1}}
    end.

%% Whether a message may be sent now. `ping' means that it has to wait and that a PINGREQ is due. A
%% message that has more copies than the limit is sent when nothing else is under way.
-spec publish(Topic :: binary(), echoes()) -> {send | wait | ping, echoes()}.
publish(_, Echoes = #echoes{subscriptions = Subscriptions}) when map_size(Subscriptions) =:= 0 ->
    {send, Echoes};
publish(Topic, Echoes) ->
    case copies(Topic, Echoes) of
        0 -> {send, Echoes};
        Copies -> publish_copies(Copies, Echoes)
    end.

publish_copies(Copies, Echoes = #echoes{under_way = UnderWay, ping = none}) when
    UnderWay =:= 0; UnderWay + Copies =< ?MAX
->
    {send, Echoes#echoes{under_way = UnderWay + Copies}};
publish_copies(_, Echoes = #echoes{ping = none}) ->
    {ping, Echoes#echoes{ping = {first, due}}};
%% After a wait there must be room for many copies, not only for one more with each copy that
%% arrives.
publish_copies(Copies, Echoes = #echoes{under_way = UnderWay}) when
    UnderWay =:= 0; UnderWay =< ?MAX div 2, UnderWay + Copies =< ?MAX
->
    {send, Echoes#echoes{under_way = UnderWay + Copies, ping = none}};
publish_copies(_, Echoes) ->
    {wait, Echoes}.

copies(Topic, #echoes{filters = Filters, subscriptions = Subscriptions}) ->
    lists:sum([
        maps:get(Filter, Subscriptions)
     || Filter <- nats_gateway_filters:matching(Topic, Filters)
    ]).

%% So many messages have arrived from the broker. Nobody checks which of them are copies of own
%% messages.
-spec arrived(non_neg_integer(), echoes()) -> echoes().
arrived(Count, Echoes = #echoes{under_way = UnderWay}) ->
    Echoes#echoes{under_way = max(0, UnderWay - Count)}.

%% The PINGREQ with this number was sent.
-spec pinged(Number :: pos_integer(), echoes()) -> echoes().
pinged(Number, Echoes = #echoes{ping = {Which, due}}) -> Echoes#echoes{ping = {Which, Number}};
pinged(_, Echoes) -> Echoes.

%% The PINGREQ with this number was answered. After `ping_soon' the caller calls `ping_again/1'
%% after a moment.
-spec answered(Number :: pos_integer(), echoes()) -> {ok | ping_soon, echoes()}.
answered(Number, Echoes = #echoes{ping = {first, Number}}) ->
    {ping_soon, Echoes#echoes{ping = moment}};
answered(Number, Echoes = #echoes{ping = {second, Number}}) ->
    {ok, Echoes#echoes{under_way = 0}};
answered(_, Echoes) ->
    {ok, Echoes}.

-spec ping_again(echoes()) -> {ok | ping, echoes()}.
ping_again(Echoes = #echoes{ping = moment}) -> {ping, Echoes#echoes{ping = {second, due}}};
ping_again(Echoes) -> {ok, Echoes}.

%% Whether copies may still come.
-spec is_under_way(echoes()) -> boolean().
is_under_way(#echoes{under_way = UnderWay}) -> UnderWay > 0.

%% All copies have arrived or will never arrive.
-spec settled(echoes()) -> echoes().
settled(Echoes) -> Echoes#echoes{under_way = 0}.
