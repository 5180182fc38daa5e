%% The retained messages of EMQX's retainer, as a core node has them: a replicant has a copy, which may
%% be behind. The copy is read while no core node can be reached.
-module(nats_gateway_emqx_retained).

-export([read/1]).
-export([fold/4]).
%% For a replicant's call.
-export([page/2]).

-export_type([place/0]).

%% The table of the retainer. It is there once the retainer was on.
-define(TABLE, emqx_retainer_message).
-define(SHARD, emqx_retainer_shard).
-define(PAGE, 100).
-define(CORE_MS, 5000).

%% Where a fold is. `Now' is the time of its begin, in milliseconds: what has expired by then is left out.
-type place() :: {Filter :: binary(), Now :: integer(), start | Continuation :: term()}.

%% Throws `{store, nats_gateway_kv_answer:failure()}' if the core node does not answer.
-spec read(Topic :: binary()) -> {ok, Message :: tuple()} | none.
read(Topic) ->
    case at(core(), emqx_retainer, read_message, [Topic]) of
        {ok, [Message | _]} -> {ok, Message};
        _ -> none
    end.

%% Folds over what `Of' makes of each retained message of a filter. `Of' runs at the core node, so it
%% has to be a function that a module exports, and should return as little as is needed: the payloads of
%% all messages may be more than the memory. The functions of the retainer either read all messages at
%% once, or more of each than is asked for, so its table is read: it has been the same in all supported
%% versions.
%%
%% Throws as `read/1' does.
-spec fold(Filter :: binary(), Of :: fun((Message :: tuple()) -> Part), fun((Part, Acc) -> Acc), Acc) -> Acc when
    Part :: term(), Acc :: term().
fold(Filter, Of, Fun, Acc) ->
    fold_pages({Filter, erlang:system_time(millisecond), start}, Of, Fun, Acc, core()).

fold_pages(Place, Of, Fun, Acc, Node) ->
    {Parts, Next} = at(Node, ?MODULE, page, [Place, Of]),
    NAcc = lists:foldl(Fun, Acc, Parts),
    case Next of
        done -> NAcc;
        _ -> fold_pages(Next, Of, Fun, NAcc, Node)
    end.

-spec page(place(), Of :: fun((Message :: tuple()) -> Part)) -> {[Part], place() | done} when Part :: term().
page({Filter, Now, Position}, Of) ->
    Topic = emqx_retainer_index:condition(emqx_topic:words(Filter)),
    Spec = [
        {{retained_message, Topic, '$1', '$2'}, [{'orelse', {'=:=', '$2', 0}, {'>', '$2', Now}}], ['$1']}
    ],
    case select(Position, Spec) of
        '$end_of_table' -> {[], done};
        {Messages, Next} -> {[Of(Message) || Message <- Messages], {Filter, Now, Next}}
    end.

select(start, Spec) ->
    case ets:whereis(?TABLE) of
        undefined -> '$end_of_table';
        _ -> ets:select(?TABLE, Spec, ?PAGE)
    end;
%% One that was at another node meanwhile has lost its compiled match specification.
select(Continuation, Spec) ->
    ets:select(ets:repair_continuation(Continuation, Spec)).

core() ->
    case mria_rlog:role() of
        core ->
            node();
        replicant ->
            case mria_status:upstream_node(?SHARD) of
                {ok, Core} -> Core;
                disconnected -> node()
            end
    end.

at(Node, Module, Function, Arguments) when Node =:= node() ->
    apply(Module, Function, Arguments);
at(Core, Module, Function, Arguments) ->
    try
        erpc:call(Core, Module, Function, Arguments, ?CORE_MS)
    catch
        error:{exception, undef, [{Module, Function, _, _} | _]} ->
            fail([<<"the plugin of this version does not run on the core node ">>, atom_to_binary(Core)]);
        error:{erpc, Reason} ->
            fail([<<"the core node ">>, atom_to_binary(Core), <<" does not answer: ">>, atom_to_binary(Reason)])
    end.

-spec fail(iolist()) -> no_return().
fail(Text) -> throw({store, {failed, iolist_to_binary(Text)}}).
