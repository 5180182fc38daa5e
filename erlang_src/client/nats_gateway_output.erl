%% What a channel has still to do and to say for a client that is behind.
%%
%% A channel returns about a slice of output at a time. The steps that are left wait here until the
%% slice was sent, and what the host says meanwhile waits behind them. Messages that must not overtake
%% the +OK of the operation that is waited for are held here, too.
-module(nats_gateway_output).

-export([new/0]).
-export([is_behind/1]).
-export([bytes/1]).
-export([left/2]).
-export([later/2]).
-export([take/1]).
-export([hold/3]).
-export([holds/1]).
-export([release/1]).
-export([drop/1]).

-include("nats_gateway.hrl").

-export_type([output/0, step/0]).

%% What is to be done for a client: an event of the host, or a part of what became of one.
-type step() ::
    nats_gateway_host:event()
    %% deliveries that the login permits
    | {permitted, [#delivery{}]}
    %% those for the sids they go to
    | {frames, [#message{}]}
    %% the operations that waited for what is before this
    | resume
    %% the password was compared
    | {judged, nats_gateway_login:verdict() | busy}.

-record(output, {
    %% what is to be done when the output that was returned last has been sent
    left = [] :: [step()],
    %% what the host has said since, latest first
    later = [] :: [step()],
    %% latest first
    held = [] :: [#message{}],
    %% that the client will be sent for these three, about
    bytes = 0 :: non_neg_integer()
}).

-opaque output() :: #output{}.

-spec new() -> output().
new() -> #output{}.

%% Whether there are steps that wait for the output to be sent.
-spec is_behind(output()) -> boolean().
is_behind(#output{left = [], later = []}) -> false;
is_behind(#output{}) -> true.

-spec bytes(output()) -> non_neg_integer().
bytes(#output{bytes = Bytes}) -> Bytes.

%% Steps that are for the next slice.
-spec left([step()], output()) -> output().
left(Steps, Output = #output{bytes = Bytes}) ->
    Output#output{left = Steps, bytes = Bytes + nats_gateway_delivering:bytes(Steps)}.

%% Steps behind all others.
-spec later([step()], output()) -> output().
later(Steps, Output = #output{later = Later, bytes = Bytes}) ->
    Output#output{
        later = lists:reverse(Steps, Later), bytes = Bytes + nats_gateway_delivering:bytes(Steps)
    }.

%% All steps, in order.
-spec take(output()) -> {[step()], output()}.
take(Output = #output{left = Left, later = Later}) ->
    {Left ++ lists:reverse(Later), drop(Output)}.

-spec hold([#message{}], Bytes :: non_neg_integer(), output()) -> output().
hold(Messages, More, Output = #output{held = Held, bytes = Bytes}) ->
    Output#output{held = lists:reverse(Messages, Held), bytes = Bytes + More}.

-spec holds(output()) -> boolean().
holds(#output{held = Held}) -> Held =/= [].

%% What was held back, as a step.
-spec release(output()) -> {step(), output()}.
release(Output = #output{held = Held, bytes = Bytes}) ->
    Frames = {frames, lists:reverse(Held)},
    {Frames, Output#output{held = [], bytes = Bytes - nats_gateway_delivering:bytes([Frames])}}.

%% All but what was held back.
-spec drop(output()) -> output().
drop(#output{held = Held}) ->
    #output{held = Held, bytes = nats_gateway_delivering:bytes([{frames, Held}])}.
