%% Decides whether each delivery is sent at once, or together with the others of the same moment.
%%
%% A send costs many times as much as a delivery in it, and wakes the client each time. While a
%% publisher works on its next message, a connection would send its messages one by one. So if a
%% client gets many messages within a moment, and sends nothing meanwhile, the messages of the next
%% moment are sent to it together. A client that answers each message, as in request/reply, never
%% waits, because everything that it sends ends the collecting.
%%
%% A publisher may wait until its last messages have arrived, which the client says over another
%% connection, or not over this gateway at all. Then waiting would hold the publisher back. This is
%% seen when far fewer messages come while they are collected than came before. Then messages are sent
%% at once for a while, which is longer each time.
-module(nats_gateway_pace).

-export([new/0]).
-export([next/2]).
-export([collected/3]).
-export([heard/1]).

-export_type([pace/0]).

%% Times are in microseconds, and rates in deliveries per moment.
-opaque pace() ::
    %% the number of deliveries sent at once since this time
    {counting, Since :: integer(), Count :: non_neg_integer(), Rest :: pos_integer()}
    %% since this time, and the rate before
    | {collecting, Since :: integer(), Rate :: pos_integer(), Rest :: pos_integer()}
    %% at once until then, because waiting has held somebody back; `Rest' is for the next time
    | {resting, Until :: integer(), Rest :: pos_integer()}.

-define(MOMENT_US, 1000).
%% Fewer deliveries in a moment are not worth waiting for.
-define(MANY, 4).
%% Collecting goes on while at least one in so many of the deliveries before still comes.
-define(HELD_BACK, 2).
-define(MIN_REST_US, 50000).
-define(MAX_REST_US, 1600000).

-spec new() -> pace().
new() -> {counting, 0, 0, ?MIN_REST_US}.

%% Decides about one delivery.
-spec next(NowUs :: integer(), pace()) -> {at_once | collect, pace()}.
next(_, Pace = {collecting, _, _, _}) ->
    {collect, Pace};
next(Now, {counting, _, 0, Rest}) ->
    {at_once, {counting, Now, 1, Rest}};
next(Now, {counting, Since, Count, Rest}) when Now - Since =< ?MOMENT_US ->
    {at_once, {counting, Since, Count + 1, Rest}};
next(Now, {counting, Since, Count, Rest}) when Now - Since =< 2 * ?MOMENT_US, Count > ?MANY ->
    {collect, {collecting, Now, Count * ?MOMENT_US div (Now - Since), Rest}};
next(Now, {counting, _, _, Rest}) ->
    {at_once, {counting, Now, 1, Rest}};
next(Now, Pace = {resting, Until, _}) when Now < Until ->
    {at_once, Pace};
next(Now, {resting, _, Rest}) ->
    {at_once, {counting, Now, 1, Rest}}.

%% This many deliveries were collected.
-spec collected(non_neg_integer(), NowUs :: integer(), pace()) -> pace().
collected(Count, Now, {collecting, Since, Rate, _}) when
    Count >= ?MANY, ?HELD_BACK * Count * ?MOMENT_US >= Rate * (Now - Since)
->
    {collecting, Now, Rate, ?MIN_REST_US};
collected(_, Now, {collecting, _, _, Rest}) ->
    {resting, Now + Rest, min(2 * Rest, ?MAX_REST_US)};
collected(_, _, Pace) ->
    Pace.

%% The client has sent something.
-spec heard(pace()) -> pace().
heard(_) -> new().
