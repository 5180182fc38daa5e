%% Decides whether each delivery is sent at once, or together with the others of the same moment.
%%
%% A send costs many times as much as a delivery in it, and wakes the client each time. While a
%% publisher works on its next message, a connection would send its messages one by one. So if a
%% client gets many messages within a moment, and sends nothing meanwhile, the messages of the next
%% moment are sent to it together. A client that answers each message, as in request/reply, never
%% waits, because everything that it sends ends the collecting.
-module(nats_gateway_pace).

-export([new/0]).
-export([next/2]).
-export([collected/2]).
-export([heard/1]).

-export_type([pace/0]).

-opaque pace() ::
    collecting
    %% the number of deliveries sent at once since this time, in microseconds
    | {Since :: integer(), Count :: non_neg_integer()}.

-define(MOMENT_US, 1000).
%% Fewer deliveries in a moment are not worth waiting for.
-define(MANY, 4).

-spec new() -> pace().
new() -> {0, 0}.

%% Decides about one delivery.
-spec next(NowUs :: integer(), pace()) -> {at_once | collect, pace()}.
next(_, collecting) -> {collect, collecting};
next(Now, {_, 0}) -> {at_once, {Now, 1}};
next(Now, {Since, _}) when Now - Since > ?MOMENT_US -> {at_once, {Now, 1}};
next(_, {Since, Count}) when Count < ?MANY -> {at_once, {Since, Count + 1}};
next(_, _) -> {collect, collecting}.

%% This many deliveries were collected.
-spec collected(non_neg_integer(), pace()) -> pace().
collected(Count, collecting) when Count >= ?MANY -> collecting;
collected(_, _) -> new().

%% The client has sent something.
-spec heard(pace()) -> pace().
heard(_) -> new().
