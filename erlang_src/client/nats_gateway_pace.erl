%% When deliveries go out: each at once, or all of a moment together.
%%
%% A send costs many times what a delivery in it costs, and wakes the client each time. A process
%% that gets its messages one by one, while their publisher is at work on the next, would send one
%% by one. So a client that gets many within a moment, and has nothing to say meanwhile, gets what
%% the next moment brings in one piece. Who waits for each message to answer it, as in
%% request/reply, never waits here: what it says ends the collecting.
-module(nats_gateway_pace).

-export([new/0]).
-export([next/2]).
-export([collected/2]).
-export([heard/1]).

-export_type([pace/0]).

-opaque pace() ::
    collecting
    %% deliveries that went out at once since then, in microseconds
    | {Since :: integer(), Count :: non_neg_integer()}.

-define(MOMENT_US, 1000).
%% In a moment. Fewer are not worth to wait for.
-define(MANY, 4).

-spec new() -> pace().
new() -> {0, 0}.

%% What is to be done with a delivery.
-spec next(NowUs :: integer(), pace()) -> {at_once | collect, pace()}.
next(_, collecting) -> {collect, collecting};
next(Now, {_, 0}) -> {at_once, {Now, 1}};
next(Now, {Since, _}) when Now - Since > ?MOMENT_US -> {at_once, {Now, 1}};
next(_, {Since, Count}) when Count < ?MANY -> {at_once, {Since, Count + 1}};
next(_, _) -> {collect, collecting}.

%% So many came together.
-spec collected(non_neg_integer(), pace()) -> pace().
collected(Count, collecting) when Count >= ?MANY -> collecting;
collected(_, _) -> new().

%% The client has sent something.
-spec heard(pace()) -> pace().
heard(_) -> new().
