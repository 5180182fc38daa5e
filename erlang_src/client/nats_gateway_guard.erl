%% A gen_server whose crash reports hold no secrets.
%%
%% A crash report shows arguments, values that did not match, and messages that were waiting. In
%% processes that handle passwords, tokens or JWTs, all of these may hold secrets. With this module
%% a report shows only the kind of the error, and the functions and lines of its stack.
-module(nats_gateway_guard).

-behaviour(gen_server).

-export([start_link/2]).
-export([start_link/3]).
-export([shape/1]).
-export([caught/3]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-type state() :: {module(), term()}.

%% These are like the functions of gen_server. The module has the callbacks of a gen_server.
-spec start_link(module(), term()) -> gen_server:start_ret().
start_link(Module, Argument) -> gen_server:start_link(?MODULE, {Module, Argument}, []).

-spec start_link({local, atom()}, module(), term()) -> gen_server:start_ret().
start_link(Name, Module, Argument) ->
    gen_server:start_link(Name, ?MODULE, {Module, Argument}, []).

init({Module, Argument}) ->
    case guarded(Module, init, [Argument]) of
        {ok, State} -> {ok, {Module, State}};
        {ok, State, More} -> {ok, {Module, State}, More};
        Other -> Other
    end.

handle_continue(Continue, {Module, State}) ->
    result(guarded(Module, handle_continue, [Continue, State]), Module).

handle_call(Request, From, {Module, State}) ->
    result(guarded(Module, handle_call, [Request, From, State]), Module).

handle_cast(Message, {Module, State}) ->
    result(guarded(Module, handle_cast, [Message, State]), Module).

handle_info(Message, {Module, State}) ->
    result(guarded(Module, handle_info, [Message, State]), Module).

guarded(Module, Function, Arguments) ->
    try
        apply(Module, Function, Arguments)
    catch
        Class:Reason:Stack -> crash(Class, Reason, Stack)
    end.

-spec result(tuple(), module()) -> tuple().
result({noreply, State}, Module) -> {noreply, {Module, State}};
result({noreply, State, More}, Module) -> {noreply, {Module, State}, More};
result({reply, Reply, State}, Module) -> {reply, Reply, {Module, State}};
result({reply, Reply, State, More}, Module) -> {reply, Reply, {Module, State}, More};
result({stop, Reason, State}, Module) -> {stop, end_reason(Reason), {Module, State}};
result({stop, Reason, Reply, State}, Module) -> {stop, end_reason(Reason), Reply, {Module, State}}.

%% An end with `shutdown' makes no report, so its reason is kept. Another reason may be the crash of
%% another process.
end_reason({shutdown, Reason}) -> {shutdown, Reason};
end_reason(Reason) -> shape(Reason).

-spec terminate(term(), state()) -> term().
terminate(Reason, {Module, State}) -> guarded(Module, terminate, [Reason, State]).

%% Of the state, only the part is shown that the module has made fit to be shown. No key may be
%% missing in the result, because gen_server would then show the original value.
format_status(Status = #{state := {Module, State}}) ->
    hide(Module:format_status(Status#{state := State}));
format_status(Status) ->
    hide(Status).

hide(Status) ->
    maps:map(
        fun
            (message, _) -> hidden;
            (log, _) -> [];
            (_, Value) -> Value
        end,
        Status
    ).

-spec crash(error | exit | throw, term(), erlang:stacktrace()) -> no_return().
crash(Class, Reason, Stack) ->
    %% The runtime's report shows the messages in the mailbox.
    flush(),
    erlang:raise(class(Class), shape(Reason), frames(Stack)).

flush() ->
    receive
        _ -> flush()
    after 0 -> ok
    end.

%% gen_server would take a thrown term for the result of the callback.
class(throw) -> error;
class(Class) -> Class.

%% The part of a crash's reason that cannot be a secret.
-spec shape(term()) -> term().
shape(Reason) when is_atom(Reason) -> Reason;
shape({shutdown, Reason}) when is_atom(Reason) -> {shutdown, Reason};
shape(Reason) when is_tuple(Reason), tuple_size(Reason) > 0, is_atom(element(1, Reason)) ->
    {element(1, Reason), hidden};
shape(_) -> hidden.

%% What the log may say of an error that was caught: the arguments and values in it may hold secrets.
-spec caught(error | exit | throw, Reason :: term(), erlang:stacktrace()) ->
    #{reason | stacktrace => term()}.
caught(Class, Reason, Stack) ->
    #{reason => {Class, shape(Reason)}, stacktrace => frames(Stack)}.

%% The stack without arguments.
frames(Stack) -> lists:map(fun frame/1, Stack).

frame({Module, Function, Arguments, Location}) when is_list(Arguments) ->
    frame({Module, Function, length(Arguments), Location});
frame({Module, Function, Arity, Location}) ->
    {Module, Function, Arity, [Where || Where = {Key, _} <- Location, Key =:= file orelse Key =:= line]}.
